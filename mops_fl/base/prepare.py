"""A base model as a local Hugging Face folder in the type wanted.

What is not already safetensors in that type is converted once into the cache, under a key of its
content; from there it is memory-mapped, so that processes share its pages.
"""

import json
import struct
from pathlib import Path

from mops_fl.base.source import check_tokenizer, digest, find, llama_config
from mops_fl.config import BackboneConfig
from mops_fl.files import cache_folder, made_once

_FORMAT = 1
_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def prepared(backbone: BackboneConfig) -> Path:
    """A local folder of safetensors in the wanted type, with the tokenizer; converted if need be.

    Raises:
        ModelError: the model does not exist, is not a LLaMA, or has no tokenizer.
        ConfigError: `dtype` is to be that of a device which does not exist.
    """
    dtype = backbone.dtype
    if dtype == "auto":
        from mops_fl.base.dtype import resolve_dtype

        dtype = resolve_dtype(dtype, backbone.device)
    source = find(backbone.model)
    if not source.gguf:
        llama_config(backbone.model, source.path)
        check_tokenizer(backbone.model, source.path)
        if _is_ready(source.path, dtype):
            return source.path
    key = f"{digest(source)[:32]}-{dtype}-v{_FORMAT}"
    with made_once(cache_folder() / "backbones" / key) as made:
        if made.folder is not None:
            from mops_fl.base.convert import convert

            convert(backbone.model, source, dtype, made.folder)
    return made.target


def _is_ready(folder: Path, dtype: str) -> bool:
    files = sorted(folder.glob("*.safetensors"))
    return bool(files) and all(_stored_types(f) <= {_SAFETENSORS_NAMES[dtype]} for f in files)


def _stored_types(file: Path) -> set[str]:
    """The types of the tensors in a safetensors file, from its header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
