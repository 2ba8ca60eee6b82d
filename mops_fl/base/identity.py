"""What identifies a model: digests of everything that changes its numbers.

Reading gigabytes takes its time, so what was found out about files is kept in the cache for as long
as the files stay the same.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mops_fl.base.checkpoint import weight_files
from mops_fl.base.source import Source
from mops_fl.errors import RunError
from mops_fl.files import cache_folder, write_text

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""Whatever decides the ids of a text."""

_SETTLED = 2.0
"""Seconds after which a file system's clock tells one change of a file from the next."""


def digest(source: Source) -> str:
    """SHA-256 over the weights and the configuration, in hexadecimal."""
    if source.gguf:
        return _hashed([source.path])
    return _hashed([*weight_files(source.path), source.path / "config.json"])


def tokenizer_digest(source: Source) -> str:
    """SHA-256 over the names and contents of the tokenizer's files, in hexadecimal."""
    if source.gguf:
        return _hashed([source.path])
    files = tokenizer_files(source.path)
    named = f"{[file.name for file in files]}{_hashed(files)}"
    return hashlib.sha256(named.encode()).hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def signature(files: Sequence[Path]) -> str:
    """A digest that changes when a file is changed, replaced or moved, without reading it."""
    stats = [(str(file), file.stat()) for file in files]
    facts = [(n, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for n, s in stats]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def once(kind: str, files: Sequence[Path], find_out: Callable[[], str]) -> str:
    """What `find_out` says about files, asked again only when one of them has changed.

    Args:
        kind: what is found out; a folder of the cache.
        files: all that the answer depends on.
        find_out: gives the answer; when it raises, nothing is kept.
    """
    memo = cache_folder() / kind / signature(files)
    with contextlib.suppress(OSError):
        return memo.read_text(encoding="utf-8")
    answer = find_out()
    if time.time() - max(file.stat().st_ctime for file in files) > _SETTLED:
        with contextlib.suppress(RunError):
            write_text(memo, answer)
    return answer


def _hashed(files: Sequence[Path]) -> str:
    return once("digests", files, lambda: _sha256(files))


def _sha256(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()
