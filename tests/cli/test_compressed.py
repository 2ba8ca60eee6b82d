"""Real runs over Flower and Ray on compressed backbones, through the command line."""

import json

import numpy as np
import pandas as pd
import pytest
import small_run

from experiments.golden.tiny import save_tiny_llama
from mops_fl.compression.artifact import verify

pytestmark = pytest.mark.slow

ROUNDS = 2
VALUES = {"num-server-rounds": ROUNDS, "learning-rate": 0.05, "calibration-samples": 16}


@pytest.fixture
def losses(tmp_path, monkeypatch):
    """Runs a federation in a cache of its own; the global loss before and after each round."""
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))
    # widths that nf4's blocks divide, and weights large enough that pruning is felt
    shape = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    model = save_tiny_llama(tmp_path / "llama", **shape)

    def run(**values: str) -> list[float]:
        folder = small_run.simulate(tmp_path, "run", {**VALUES, "model": model, **values})
        assert json.loads((folder / "run.json").read_text())["status"] == "completed"
        rounds = pd.read_csv(folder / "rounds.csv")
        assert np.isfinite(rounds["nll"]).all()
        return rounds[rounds["task"] == "all"].sort_values("round")["nll"].tolist()

    return run


def test_mops_on_a_pruned_backbone(losses, tmp_path):
    """Made once before Flower starts, then found by every process."""
    found = losses(compression="2:4", engine="clients")
    assert len(found) == ROUNDS + 1
    assert found[-1] < found[0]
    (made,) = (path for path in (tmp_path / "cache" / "compressed").iterdir() if path.is_dir())
    manifest = verify(made)
    assert manifest.compression == "2:4"
    assert manifest.sparsity == pytest.approx(0.5)


def test_mops_on_a_quantised_backbone(losses):
    found = losses(compression="nf4", engine="cohort")
    assert len(found) == ROUNDS + 1
    assert found[-1] < found[0]
