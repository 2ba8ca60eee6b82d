"""The embedded model on the embedded data and on real Dolly rows, in the type that is quick here.

What takes minutes may take four times as long on a slower machine.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trainables import initial_tensors

from mops_fl.base.dtype import is_emulated
from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.config import Config
from mops_fl.metrics import Tally, total
from mops_fl.models.mixture import Mixture
from mops_fl.models.trainable import Trainable
from mops_fl.training.evaluation import evaluate
from mops_fl.training.local import LocalData, draw_order, train
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED, PROMPTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

REAL_CACHE = os.environ.get("MOPS_FL_CACHE", str(Path.home() / ".cache" / "mops-fl"))


@pytest.fixture(autouse=True)
def _users_cache(monkeypatch):
    """The converted embedded model is kept between test runs, as a user keeps it."""
    monkeypatch.setenv("MOPS_FL_CACHE", REAL_CACHE)


def base_tally(trainer: Trainer, rows) -> Tally:
    """Losses of the backbone alone: no prompts, no gate."""
    mixture = Mixture(trainer.backbone, trainer.config.prompts, 1, None)
    nothing = {PROMPTS: np.zeros((0, trainer.backbone.hidden_size), np.float32)}
    return total(evaluate(mixture, Trainable([nothing], trainer.backbone.device), rows).tallies)


def dolly(real_data, **flat) -> Trainer:
    path = str(real_data / "dolly-12k.jsonl")
    return Trainer(Config.from_flat({"dataset": "dolly", "data-path": path, **flat}))


def test_the_base_model_on_real_dolly_answers(real_data):
    """Near 11 on answer tokens."""
    trainer = dolly(real_data, **{"num-samples": 1000})
    rows = trainer.tokenised.examples[:50]
    assert 8 < base_tally(trainer, rows).perplexity < 14


@pytest.mark.skipif(is_emulated("bfloat16", "auto"), reason="bfloat16 is emulated here, slowly")
def test_bfloat16_is_near_float32(real_data):
    exact, half = (
        dolly(real_data, dtype=dtype, **{"num-samples": 1000}) for dtype in ("float32", "bfloat16")
    )
    rows = half.tokenised.examples[:12]
    assert base_tally(half, rows).perplexity == pytest.approx(
        base_tally(exact, rows).perplexity, rel=0.03
    )


def test_fifty_steps_on_real_dolly_lower_the_perplexity(real_data):
    flat = {
        "num-samples": 1000,
        "max-length": 128,
        "pretrain-gate-steps": 1,
        "pretrain-prompt-steps": 5,
    }
    trainer = dolly(real_data, **flat)
    config = trainer.config
    rows = trainer.tokenised.examples
    values = trainer.pretrain(
        initial_tensors(config.prompts, trainer.backbone.hidden_size, config.seed, True)
    )
    mixture = trainer.mixture({PRETRAINED: values.pop(PRETRAINED)})

    def perplexity() -> float:
        trainable = Trainable([values], trainer.backbone.device)
        return total(evaluate(mixture, trainable, rows[-20:]).tallies).perplexity

    before = perplexity()
    steps = replace(config.train, local_steps=50)
    order = draw_order(len(rows) - 20, 50, config.seed, "centralised")
    (result,) = train(mixture, [values], [LocalData(rows, order)], steps)
    values |= result.tensors
    assert perplexity() < before


def test_the_embedded_tokenizer_ends_answers_with_its_own_end_token():
    trainer = Trainer(Config.from_flat({"num-samples": 1000}))
    ends = {example.answer[-1] for example in trainer.tokenised.examples}
    starts = {example.question[0] for example in trainer.tokenised.examples}
    # SmolLM2's tokenizer puts nothing before a text
    (hashes,) = load_tokenizer(trainer.config.backbone)("###")["input_ids"]
    assert (starts, ends) == ({hashes}, {2})
    assert trainer.backbone.model.config.eos_token_id == 2
