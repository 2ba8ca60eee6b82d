"""A base model as a local Hugging Face folder in the type wanted.

What is not already safetensors in that type is converted once into the cache, under a key of its
content; from there it is memory-mapped, so that processes share its pages. Either way the files are
checked before anything is loaded from them.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mops_fl.base.checkpoint import (
    FLOATS,
    Stored,
    already_quantised,
    check_finite,
    file_fault,
    names_fault,
    read_header,
    weight_files,
)
from mops_fl.base.identity import digest, once, tokenizer_digest, tokenizer_files
from mops_fl.base.source import find, llama_config
from mops_fl.config import BackboneConfig
from mops_fl.errors import ModelError
from mops_fl.files import cache_folder, made_once

_FORMAT = 3
_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def prepared(backbone: BackboneConfig) -> Path:
    """A local folder of safetensors in the wanted type, with the tokenizer; converted if need be.

    Raises:
        ModelError: the model does not exist, is not a LLaMA, has no tokenizer, or its files are
            not whole, not those of its config.json, quantised already, or hold NaN or infinity.
        ConfigError: `dtype` is to be that of a device which does not exist.
        RunError: there is not enough disk.
    """
    dtype = backbone.dtype
    if dtype == "auto":
        from mops_fl.base.dtype import resolve_dtype

        dtype = resolve_dtype(dtype, backbone.device)
    source = find(backbone.model)
    if not source.gguf and _is_ready(_checked(backbone.model, source.path), dtype):
        files = weight_files(source.path)
        once("finite", files, lambda: _finite(files))
        return source.path
    content = f"{digest(source)}{tokenizer_digest(source)}"
    key = f"{hashlib.sha256(content.encode()).hexdigest()[:32]}-{dtype}-v{_FORMAT}"
    with made_once(cache_folder() / "backbones" / key) as made:
        if made.folder is not None:
            from mops_fl.base.convert import convert

            convert(backbone.model, source, dtype, made.folder)
            check_finite(weight_files(made.folder))
    return made.target


def _checked(model: str, folder: Path) -> dict[str, Stored]:
    """What a folder's safetensors hold, by their headers; empty for weights of another kind."""
    config = llama_config(model, folder)
    _check_tokenizer_files(model, folder)
    files = weight_files(folder)
    if files[0].suffix != ".safetensors":
        for file in files:
            if fault := file_fault(file):
                raise ModelError(f"model={model!r}: {file} {fault}")
        return {}
    stored = {name: entry for file in files for name, entry in read_header(file).items()}
    if fault := _stored_fault(stored, config):
        raise ModelError(f"model={model!r} {fault}")
    return stored


def _stored_fault(stored: dict[str, Stored], config: dict[str, Any]) -> str:
    if any(entry.dtype not in FLOATS for entry in stored.values()):
        return already_quantised("the types of its tensors")
    return names_fault(stored, config)


def _is_ready(stored: dict[str, Stored], dtype: str) -> bool:
    """Whether the weights can be used in place: in the type wanted, under a LLaMA's own names."""
    types = {entry.dtype for entry in stored.values()}
    return types == {_SAFETENSORS_NAMES[dtype]} and "model.norm.weight" in stored


def _finite(files: Sequence[Path]) -> str:
    check_finite(files)
    return "finite"


def _check_tokenizer_files(model: str, folder: Path) -> None:
    files = tokenizer_files(folder)
    if not {"tokenizer.json", "tokenizer.model"} & {file.name for file in files}:
        raise ModelError(
            f"model={model!r}: {folder} has no tokenizer.json or tokenizer.model: "
            "save the model's tokenizer there"
        )
    for file in files:
        if fault := file_fault(file):
            raise ModelError(f"model={model!r}: {file} {fault}")
