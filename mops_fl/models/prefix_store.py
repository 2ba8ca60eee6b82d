"""Where states at L_int are kept across steps, rounds, processes and runs.

What an example is at L_int is a constant of (backbone, P¹, L_int, type, tokens), and so is the
gate's input made of it. On the CPU both are kept on disk, a file an example, mapped into memory, so
that all processes of a machine share the pages; on CUDA they stay in the memory of the device.

A missing example is computed alone, whatever batch it is met in, so that what is read back has the
bits of what would be computed: a run's numbers do not depend on what the store holds. That costs
the first pass. A full store takes nothing more: whoever reads more examples than fit, in the same
order again and again, would otherwise find none of them. On two cores, SmolLM2-135M in bfloat16 and
`skills` rows of 52 tokens, evaluation took 1.4 times as long while it filled the store as without
one, and 0.7 times as long from then on; local steps were 1.1 times as fast for one client and 1.2
times for five in one forward.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mops_fl.data import Tokenised
from mops_fl.errors import RunError
from mops_fl.files import cache_folder, replacing
from mops_fl.machine import workers, workers_per_gpu
from mops_fl.models.backbone import Backbone
from mops_fl.models.numerics import numerics

Kept = tuple[Tensor, Tensor]
"""States at L_int [T, d] in the backbone's type, and the gate's input [d] in float32."""

_FORMAT = 3
_HEADER = struct.Struct("<8s32sI20x")
_MAGIC = b"MOPSFLP\0"
_CHECKED_SHARE = 20
_LEFT_BY_EVICTION = 0.9
_PRIVATE = 0o700
_DAY = 86_400 * 10**9
"""In nanoseconds, as files tell their age."""

_log = logging.getLogger(__name__)


class PrefixStore(Protocol):
    """What keeps states of examples."""

    def get(self, example: Tokenised, make: Callable[[], Kept]) -> Kept:
        """What is kept for an example, or what `make` gives, which is then kept."""
        ...


def open_store(
    facts: Mapping[str, str | int], backbone: Backbone, size: float, root: Path | None = None
) -> PrefixStore:
    """The store for one prefix, on disk or in the memory of a CUDA device.

    Args:
        facts: what determines the prefix beside the backbone's type: its weights, P¹ and L_int.
        backbone: what computes the states.
        size: 10⁹ bytes that it may take: on disk for all prefixes together; on a device at most
            half of the memory that is free now.
        root: folder of all prefixes on disk; the cache's for None.
    """
    limit = int(size * 1e9)
    if backbone.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(backbone.device)
        return MemoryStore(min(limit, free // (2 * workers_per_gpu())))
    here = {**facts, **numerics(backbone), "format": _FORMAT}
    identity = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).digest()
    shape = (backbone.hidden_size, backbone.dtype)
    return DiskStore(root or cache_folder() / "prefix", identity, *shape, limit)


class MemoryStore:
    """States in memory: those that were made first, as many as fit."""

    def __init__(self, limit: int) -> None:
        """Begin empty.

        Args:
            limit: bytes.
        """
        self._room = limit
        self._kept: dict[bytes, Kept] = {}

    def get(self, example: Tokenised, make: Callable[[], Kept]) -> Kept:
        """See `PrefixStore`."""
        key = _key(b"", example)
        if key in self._kept:
            return self._kept[key]
        made = make()
        if _size(made) <= self._room:
            self._room -= _size(made)
            self._kept[key] = made
        return made


class DiskStore:
    """States on disk: ``root/<prefix>/<example>``, each file written whole or not at all.

    A file holds its key and a checksum, and one that does not fit them is made again. Processes
    share a store without talking to each other: at worst two compute the same example, to the same
    bits. Whenever they have written a twentieth of the limit they look at the size of all prefixes
    together. Where these exceed the limit, a process removes files that nobody has read since it
    began, or for a day where they are of its own prefix; where that is not enough it writes no
    more. Only the user can read the files: they tell as much as the rows that they are made of.
    """

    def __init__(
        self, root: Path, identity: bytes, hidden_size: int, dtype: torch.dtype, limit: int
    ) -> None:
        """Nothing is read or written before it is asked for.

        Args:
            root: folder of all prefixes.
            identity: digest of everything that determines this prefix.
            hidden_size: d.
            dtype: of the states.
            limit: bytes that all files below `root` may take.
        """
        self._root, self._identity, self._limit = root, identity, limit
        self._hidden_size, self._dtype = hidden_size, dtype
        self._folder = root / identity.hex()[:32]
        self._began = time.time_ns()
        self._unchecked = limit
        self._closed = False

    def get(self, example: Tokenised, make: Callable[[], Kept]) -> Kept:
        """See `PrefixStore`; a disk that cannot be written is said once, and lived with."""
        key = _key(self._identity, example)
        path = self._folder / key.hex()
        kept = self._read(path, key, example.fed)
        if kept is None:
            kept = make()
            self._keep(path, key, kept)
        return kept

    def _keep(self, path: Path, key: bytes, kept: Kept) -> None:
        """Write a file, unless the store is full or cannot be written."""
        try:
            if not self._closed:
                self._make_room()
            if not self._closed:
                self._write(path, key, kept)
        except (RunError, OSError) as error:
            self._closed = True
            _log.warning("states at the injection layer are not kept: %s", error)

    def _read(self, path: Path, key: bytes, length: int) -> Kept | None:
        """The states in a file, mapped; None where there is no such file, or not all of it."""
        size = _HEADER.size + self._hidden_size * (4 + length * self._dtype.itemsize)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    return None
                # a private mapping: torch wants memory that could be written
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
                with contextlib.suppress(OSError):
                    os.utime(file.fileno())
        except OSError:
            return None
        payload = memoryview(mapped)[_HEADER.size :]
        if _HEADER.unpack_from(mapped) != (_MAGIC, key, zlib.crc32(payload)):
            return None
        features = torch.frombuffer(payload, dtype=torch.float32, count=self._hidden_size)
        states = torch.frombuffer(payload, dtype=self._dtype, offset=features.nbytes)
        return states.view(length, self._hidden_size), features

    def _write(self, path: Path, key: bytes, kept: Kept) -> None:
        states, features = kept
        payload = b"".join(
            part.contiguous().view(torch.uint8).numpy().tobytes() for part in (features, states)
        )
        with replacing(path, private=True) as temporary:
            temporary.write_bytes(_HEADER.pack(_MAGIC, key, zlib.crc32(payload)) + payload)
        self._unchecked += len(payload)

    def _make_room(self) -> None:
        """Remove what nobody reads any more, once enough has been written; close a full store."""
        if self._unchecked <= self._limit // (_CHECKED_SHARE * workers()):
            return
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(_PRIVATE)
        self._unchecked, total, old = 0, 0, []
        for path in self._root.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                total += stat.st_size
                own = path.parent == self._folder and not path.name.startswith(".")
                if stat.st_mtime_ns < self._began - (_DAY if own else 0):
                    old.append((stat.st_mtime_ns, stat.st_size, path))
        if total <= self._limit:
            return
        for _, size, path in sorted(old):
            path.unlink(missing_ok=True)
            total -= size
            if total <= _LEFT_BY_EVICTION * self._limit:
                return
        self._closed = total > self._limit


def _key(identity: bytes, example: Tokenised) -> bytes:
    """Digest of a prefix and of the tokens that go through it; the last one never does."""
    fed = np.array((len(example.question), *example.question, *example.answer[:-1]), np.int64)
    return hashlib.sha256(identity + fed.tobytes()).digest()


def _size(kept: Kept) -> int:
    return sum(part.nbytes for part in kept)
