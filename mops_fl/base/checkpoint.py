"""The files that hold a model's weights, checked without loading them. No torch here.

A fault is a text that goes on after the name of a file or folder; it is empty when there is none.
"""

import json
import math
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mops_fl.errors import ModelError

FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Types of weights that are numbers as they stand → bytes."""

_KINDS = ("model.safetensors", "pytorch_model.bin")
"""What transformers looks for, in this order, each alone or as the shards of an index."""

_POINTER = b"version https://git-lfs"
_LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library's own limit."""

_EXPONENT = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0x7F800000)}
_EXPONENT |= {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}
"""Type → how to read it, and the bits that are all set in NaN and infinity, in no other value."""

_PIECE = 1 << 22
"""Values looked at together."""

_BUFFER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
"""Constants that old versions of transformers saved with the weights."""

_QUANTISED = re.compile(
    r"\.(qweight|qzeros|SCB|absmax|quant_map|weight_scale(_inv)?|weight_packed)\b"
)
_NAMED = 3
"""Tensors that a message names of each kind."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers reads a folder's weights from.

    Raises:
        ModelError: there are none, or an index or one of its shards is missing or damaged.
    """
    for kind in _KINDS:
        if (folder / kind).is_file():
            return (folder / kind,)
        index = folder / f"{kind}.index.json"
        if index.is_file():
            return _shards(index)
    raise ModelError(
        f"{folder} has no weights ({' or '.join(_KINDS)}, alone or with an index): give a whole "
        "Hugging Face folder"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    if fault := file_fault(index):
        raise ModelError(f"{index} {fault}")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = tuple(sorted(index.parent / name for name in names))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ModelError(f"{index} cannot be read ({error!r}): download it anew") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ModelError(
            f"{index} names {len(files)} files, of which {len(missing)} are missing "
            f"({', '.join(missing[:_NAMED])}): download the model anew"
        )
    return files


def file_fault(file: Path) -> str:
    """What is wrong with a file as such: it is empty, or a placeholder of git-lfs."""
    try:
        with file.open("rb") as stream:
            beginning = stream.read(len(_POINTER))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not beginning:
        return "is empty: download it anew"
    if beginning == _POINTER:
        return "is a git-lfs pointer, not the file itself: run `git lfs pull` where it was cloned"
    return ""


def read_header(file: Path) -> dict[str, Stored]:
    """Name → place of every tensor of a safetensors file.

    Raises:
        ModelError: the file is a pointer, empty, damaged or cut short.
    """
    if fault := file_fault(file):
        raise ModelError(f"{file} {fault}")
    try:
        found, end = _parsed_header(file)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, OSError) as error:
        raise ModelError(
            f"{file} is damaged or not safetensors ({error}): download it anew"
        ) from error
    size = file.stat().st_size
    if size != end:
        raise ModelError(
            f"{file} has {size} bytes where its header says {end}: it is cut short or damaged; "
            "download it anew"
        )
    return found


def _parsed_header(file: Path) -> tuple[dict[str, Stored], int]:
    """The tensors, and the size that the file must have."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
    begin, end = 8 + length, 8 + length
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            found[name] = Stored(entry["dtype"], tuple(entry["shape"]), begin + first)
            end = max(end, begin + last)
    return found, end


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a LLaMA with this config.json."""
    hidden, heads = config["hidden_size"], config.get("num_attention_heads", 32)
    inner, vocabulary = config.get("intermediate_size", 11008), config.get("vocab_size", 32000)
    width = config.get("head_dim") or hidden // heads
    own, shared = heads * width, (config.get("num_key_value_heads") or heads) * width
    matrices = {
        "self_attn.q_proj": (own, hidden),
        "self_attn.k_proj": (shared, hidden),
        "self_attn.v_proj": (shared, hidden),
        "self_attn.o_proj": (hidden, own),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": s for name, s in matrices.items()}
    for part, key in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")):
        if config.get(key):
            layer |= {f"{n}.bias": s[:1] for n, s in matrices.items() if n.startswith(part)}
    layer |= {f"{n}.weight": (hidden,) for n in ("input_layernorm", "post_attention_layernorm")}
    return {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    } | {
        f"model.layers.{index}.{name}": shape
        for index in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }


def names_fault(stored: Mapping[str, Stored], config: Mapping[str, Any]) -> str:
    """How the tensors of a folder differ from those that its config.json asks for."""
    expected = llama_shapes(config)
    if "norm.weight" in stored:  # saved without its head
        stored = {n if n in expected else f"model.{n}": entry for n, entry in stored.items()}
    missing = expected.keys() - stored.keys()
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    if config.get("tie_word_embeddings") and len(missing & ends) == 1:
        missing -= ends
    other = [
        f"{name} ({list(stored[name].shape)} for {list(shape)})"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    return tensors_fault(missing, stored.keys() - expected.keys(), other)


def tensors_fault(
    missing: Collection[str], unexpected: Collection[str], other_shape: Collection[str]
) -> str:
    """What to say of tensors that are missing, unexpected, or of another shape."""
    unexpected = [name for name in unexpected if not _BUFFER.search(name)]
    if any(map(_QUANTISED.search, unexpected)):
        return already_quantised("its tensors")
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": other_shape}
    parts = [f"{_some(names)} {state}" for state, names in lists.items() if names]
    if not parts:
        return ""
    return (
        f"does not hold the tensors that its config.json asks for: {'; '.join(parts)}: save the "
        "whole model with save_pretrained (an adapter merged, a wrapper such as DDP or "
        "torch.compile taken off), or give its own config.json"
    )


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def already_quantised(what: str) -> str:
    """The refusal of a model that was quantised before it came here."""
    return (
        f"is quantised already (so {what} say): give the float model; compression=nf4 or "
        "compression=int8 quantises it here"
    )


def check_finite(files: Collection[Path]) -> None:
    """Look at every value of safetensors files.

    Raises:
        ModelError: a tensor holds NaN or infinity; names it.
    """
    for file in files:
        mapped = np.memmap(file, np.uint8, "r")
        for name, tensor in read_header(file).items():
            view, mask = _EXPONENT[tensor.dtype]
            size = math.prod(tensor.shape) * FLOATS[tensor.dtype]
            # bytes of a file may begin anywhere; numpy reads them so all the same
            values = mapped[tensor.offset : tensor.offset + size].view(view)
            if any(((piece & mask) == mask).any() for piece in _pieces(values)):
                raise ModelError(
                    f"{file}: {name} holds NaN or infinite values: give a sound model, or another "
                    "dtype if it was converted"
                )


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))
