"""The weights that a backbone loads: a base model, compressed as the configuration says.

The one place that knows both.
"""

from dataclasses import dataclass
from pathlib import Path

from mops_fl.base.prepare import prepared
from mops_fl.base.source import Source, digest, find, llama_config, tokenizer_digest
from mops_fl.compression.manifest import FILE
from mops_fl.config import BackboneConfig, DataConfig, PromptConfig
from mops_fl.errors import ConfigError

CALIBRATION_SEED = 0
"""Decides the calibration rows; not the run's seed, so that runs of all seeds share a backbone."""

CALIBRATION_LENGTH = 256
"""Tokens of a calibration row, at most."""


@dataclass(frozen=True)
class ModelFacts:
    """What can be said of a base model without loading it."""

    hidden_size: int
    num_layers: int
    digest: str
    """Of the weights and the configuration."""
    tokenizer_digest: str


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


def ensure_weights(backbone: BackboneConfig) -> Path:
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
    from mops_fl.base.device import resolve_device
    from mops_fl.base.tokenizer import load_tokenizer
    from mops_fl.compression.artifact import verify
    from mops_fl.compression.cache import ensure
    from mops_fl.compression.calibration import load_calibration

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


def model_facts(backbone: BackboneConfig) -> ModelFacts:
    """Size and digest of a base model, without its weights.

    Raises:
        ModelError: there is no such model, it is not a LLaMA, or it has no tokenizer.
    """
    source = Source(ensure_weights(backbone))
    config = llama_config(backbone.model, source.path)
    sizes = config["hidden_size"], config["num_hidden_layers"]
    return ModelFacts(*sizes, digest(source), tokenizer_digest(source.path))


def check_backbone(backbone: BackboneConfig, prompts: PromptConfig) -> ModelFacts:
    """Everything that can be wrong with a base model, found before a run starts.

    Raises:
        ModelError: there is no such model, it is not a LLaMA, or it has no tokenizer.
        ConfigError: the injection layer or the device does not exist.
    """
    facts = model_facts(backbone)
    injection_layer(prompts, facts.num_layers)
    if backbone.device not in ("auto", "cpu"):
        from mops_fl.base.device import resolve_device

        resolve_device(backbone.device)
    return facts
