"""The same training on pruned and quantised backbones."""

import numpy as np
import pytest
import torch

from experiments.golden.tiny import save_tiny_llama
from mops_fl.config import Config
from mops_fl.models.weights import ensure_weights
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED

FLAT = {
    "dtype": "float32",
    "num-samples": 120,
    "num-clients": 6,
    "active-clients": 2,
    "experts": 2,
    "prompts-per-expert": 2,
    "local-steps": 3,
    "pretrain-prompt-steps": 2,
    "pretrain-gate-steps": 2,
    "calibration-samples": 16,
}
HIDDEN = 64


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory):
    """Widths that nf4's blocks divide."""
    folder = tmp_path_factory.mktemp("wide-llama")
    return save_tiny_llama(folder, hidden_size=HIDDEN, intermediate_size=128, initializer_range=0.1)


@pytest.mark.filterwarnings("ignore:(int8|nf4) on the CPU")
@pytest.mark.parametrize("compression", ["2:4", "int8", "nf4", "2:4+nf4"])
@pytest.mark.parametrize("method", ["mops", "lora", "ia3"])
def test_rounds_on_a_compressed_backbone(wide_llama, compression, method):
    values = {"model": str(wide_llama), "compression": compression, "method": method}
    config = Config.from_flat({**FLAT, **values})
    trainer = Trainer(config)
    values = trainer.pretrain(trainer.method.initial(config, trainer.model_facts.sizes, 0))
    frozen = {PRETRAINED: values.pop(PRETRAINED)} if method == "mops" else {}
    before = {k: v.clone() for k, v in trainer.backbone.model.state_dict().items()}
    result = trainer.train(0, 1, values, frozen)
    assert np.isfinite(result.tally.nll)
    for name, value in result.tensors.items():
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
        assert (value != values[name]).any(), name
    for tally in trainer.evaluate(0, result.tensors, frozen).test.tallies.values():
        assert np.isfinite(tally.nll)
    for name, weight in trainer.backbone.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    if "2:4" in compression:
        assert ensure_weights(config.backbone) != wide_llama
    if compression == "2:4":
        matrix = trainer.backbone.model.model.layers[1].mlp.down_proj.weight
        assert ((matrix.view(-1, 4) == 0).sum(1) == 2).all()
