"""The weights that a backbone loads: a base model, compressed as the configuration says.

The one place that knows both.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mops_fl.base.identity import digest, tokenizer_digest
from mops_fl.base.prepare import prepared
from mops_fl.base.source import Source, find, llama_config
from mops_fl.base.tokenizer import check_tokenizer
from mops_fl.compression.manifest import FILE
from mops_fl.config import BackboneConfig, Config, DataConfig
from mops_fl.errors import ConfigError
from mops_fl.files import cache_folder
from mops_fl.methods import method_of
from mops_fl.wire.records import PRETRAINED, PROMPTS
from mops_fl.wire.shapes import ModelSizes

CALIBRATION_SEED = 0
"""Decides the calibration rows; not the run's seed, so that runs of all seeds share a backbone."""

CALIBRATION_LENGTH = 256
"""Tokens of a calibration row, at most."""


@dataclass(frozen=True)
class ModelFacts:
    """What can be said of a base model without loading it."""

    sizes: ModelSizes
    vocab_size: int
    context: int
    """Positions that the model was made for."""
    digest: str
    """Of weights and configuration."""
    tokenizer_digest: str
    revision: str
    """The hub's commit; empty for what does not come from there."""


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
        from mops_fl.compression.artifact import verify_once

        verify_once(source.path)
    folder = prepared(backbone)
    if not backbone.spec.pruning:
        return folder
    from mops_fl.compression.artifact import verify_once

    base = Source(folder)
    made = _pruned(backbone, folder, digest(base) + tokenizer_digest(base), cache_folder())
    verify_once(made)
    return made


@lru_cache
def _pruned(backbone: BackboneConfig, base: Path, _content: str, _cache: Path) -> Path:
    """The pruned model's folder, looked for once in this process for the same base model."""
    from mops_fl.base.device import resolve_device
    from mops_fl.base.tokenizer import load_tokenizer
    from mops_fl.compression.cache import ensure
    from mops_fl.compression.calibration import load_calibration

    rows = load_calibration(
        calibration_data(backbone),
        load_tokenizer(backbone),
        samples=backbone.calibration_samples,
        seed=CALIBRATION_SEED,
    )
    return ensure(base, backbone.spec, rows, device=resolve_device(backbone.device))


def calibration_data(backbone: BackboneConfig) -> DataConfig:
    """The dataset that a pruning is calibrated on; the same for every seed of a run."""
    return DataConfig(
        dataset=backbone.calibration,
        data_path=backbone.calibration_path,
        tasks=backbone.calibration_tasks,
        unseen_tasks="",
        num_samples=0,
        test_fraction=0.5,
        validation_fraction=0.0,
        server_fraction=0.5,
        server_data="",
        max_length=CALIBRATION_LENGTH,
        eval_samples=0,
    )


def model_facts(backbone: BackboneConfig) -> ModelFacts:
    """Sizes and digests of a base model, without its weights.

    Raises:
        ModelError: as `ensure_weights`; or its tokenizer cannot be used.
    """
    source = Source(ensure_weights(backbone))
    config = llama_config(backbone.model, source.path)
    check_tokenizer(backbone.model, source.path)
    return ModelFacts(
        sizes=ModelSizes.of(config),
        vocab_size=config.get("vocab_size", 32000),
        context=config.get("max_position_embeddings", 2048),
        digest=digest(source),
        tokenizer_digest=tokenizer_digest(source),
        revision=find(backbone.model).revision,
    )


def check_backbone(config: Config) -> ModelFacts:
    """Everything that can be wrong with a run's base model, found before it starts.

    Raises:
        ModelError: as `model_facts`.
        ConfigError: the injection layer or the device does not exist, or prompts and examples do
            not fit into the model's context.
    """
    backbone = config.backbone
    facts = model_facts(backbone)
    check_fit(config, facts)
    if backbone.device not in ("auto", "cpu"):
        from mops_fl.base.device import resolve_device

        resolve_device(backbone.device)
    return facts


def check_fit(config: Config, facts: ModelFacts) -> None:
    """Whether a run's method and rows fit a model.

    Raises:
        ConfigError: the injection layer does not exist, or prompts and examples do not fit into the
            model's context.
    """
    method, max_length, context = method_of(config.method), config.data.max_length, facts.context
    method.injection_layer(config.prompts, facts.sizes.num_layers)
    shapes = method.all_shapes(config, facts.sizes)
    vectors = shapes[PROMPTS][0] if PROMPTS in shapes else 0
    if config.prompts.injection == "append" and PRETRAINED in shapes:
        vectors += shapes[PRETRAINED][0]
    if vectors + max_length > context:
        raise ConfigError(
            f"max-length={max_length} and {vectors} prompt vectors are {vectors + max_length} "
            f"positions, but the model's context (max_position_embeddings) has {context}: set "
            f"max-length to at most {context - vectors}, or use fewer prompts"
        )
