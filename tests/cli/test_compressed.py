"""A real run over Flower and Ray on a quantised backbone, through the command line.

A pruned one is the preset `paper`, in `tests/experiments/test_presets.py`.
"""

import numpy as np
import pandas as pd
import pytest
import small_run

from experiments.golden.tiny import save_tiny_llama


@pytest.mark.slow
def test_mops_on_a_quantised_backbone(tmp_path):
    # widths that nf4's blocks divide
    shape = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    model = save_tiny_llama(tmp_path / "llama", **shape)
    values = {"num-server-rounds": 2, "learning-rate": 0.05, "compression": "nf4"}
    folder = small_run.simulate(tmp_path, "run", {**values, "model": model, "engine": "cohort"})
    rounds = pd.read_csv(folder / "rounds.csv")
    assert np.isfinite(rounds["nll"]).all()
    total = rounds[rounds["task"] == "all"].set_index("round")["nll"]
    assert [*total.index] == [0, 1, 2]
    assert total[2] < total[0]
