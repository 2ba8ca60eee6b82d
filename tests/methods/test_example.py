"""The method that docs/write-a-method.md writes as an example works as it stands there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mops_fl.config import METHODS, Config
from mops_fl.methods import method_of
from mops_fl.metrics import total
from mops_fl.training.trainer import Trainer

TEXT = (Path(__file__).parents[2] / "docs" / "write-a-method.md").read_text(encoding="utf-8")
CODE, LINE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def bias(tmp_path, monkeypatch) -> str:
    """The example, registered."""
    ((name, where),) = re.findall(r'"(\w+)": "(.*?)"', LINE)
    module, _, _ = where.partition(":")
    (tmp_path / "bias_example.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, name, where.replace(module, "bias_example"))
    yield name
    sys.modules.pop("bias_example", None)
    method_of.cache_clear()


def test_it_is_as_short_as_it_says():
    assert len(CODE.splitlines() + LINE.splitlines()) < 40


def test_it_trains_a_cohort_from_the_frozen_model_on(bias, tiny_llama):
    values = {"model": str(tiny_llama), "dtype": "float32", "num-samples": 200, "num-clients": 5}
    values |= {"active-clients": 2, "local-steps": 5, "learning-rate": 0.05, "max-length": 64}
    trainer = Trainer(Config.from_flat({**values, "method": bias}))
    start = trainer.method.initial(trainer.config, trainer.model_facts.sizes, 0)
    assert {name: value.shape for name, value in start.items()} == {"bias": (4, 16)}
    frozen = Trainer(Config.from_flat({**values, "method": "base"})).evaluate(0, {}, {})
    before = trainer.evaluate(0, start, {})
    assert total(before.test.tallies).nll == pytest.approx(total(frozen.test.tallies).nll)
    results = trainer.train_cohort([0, 3], 1, [start, start], {})
    for partition, result in zip((0, 3), results, strict=True):
        alone = trainer.train(partition, 1, start, {})
        np.testing.assert_allclose(result.tensors["bias"], alone.tensors["bias"], atol=1e-4)
        assert (result.tensors["bias"] != 0).any()
    after = trainer.evaluate(0, results[0].tensors, {})
    assert after.test.tallies != before.test.tallies
