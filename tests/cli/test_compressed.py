"""Real runs over Flower and Ray on compressed backbones, through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import save_tiny_llama

from mops_fl.compression.artifact import verify

pytestmark = pytest.mark.slow

COMMAND = str(Path(sys.executable).with_name("mops-fl"))
ROUNDS = 2
VALUES = {
    "num-clients": 6,
    "active-clients": 4,
    "num-server-rounds": ROUNDS,
    "num-samples": 120,
    "local-steps": 10,
    "experts": 2,
    "prompts-per-expert": 3,
    "pretrain-prompt-steps": 3,
    "pretrain-gate-steps": 3,
    "learning-rate": 0.05,
    "calibration-samples": 16,
}


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory):
    """Widths that nf4's blocks divide, and weights large enough that pruning is felt."""
    folder = tmp_path_factory.mktemp("wide-llama")
    return save_tiny_llama(folder, hidden_size=64, intermediate_size=128, initializer_range=0.1)


@pytest.fixture
def simulate(tmp_path, monkeypatch):
    """Runs a simulation in a cache of its own; gives its folder."""
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))

    def run(name: str, **values) -> Path:
        flat = {**VALUES, **values}
        arguments = [f"-c{key}={value}" for key, value in flat.items()]
        command = [COMMAND, "simulate", f"--name={name}", "--workers=2", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return tmp_path / "runs" / name

    return run


def total(run: Path) -> list[float]:
    """The global loss after each round, before the first one too."""
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    rounds = pd.read_csv(run / "rounds.csv")
    assert np.isfinite(rounds["nll"]).all()
    return rounds[rounds["task"] == "all"].sort_values("round")["nll"].tolist()


def test_mops_on_a_pruned_backbone(simulate, wide_llama, tmp_path):
    """Made once before Flower starts, then found by every process."""
    losses = total(simulate("pruned", model=wide_llama, compression="2:4", engine="clients"))
    assert len(losses) == ROUNDS + 1
    assert losses[-1] < losses[0]
    (made,) = (path for path in (tmp_path / "cache" / "compressed").iterdir() if path.is_dir())
    manifest = verify(made)
    assert manifest.compression == "2:4"
    assert manifest.sparsity == pytest.approx(0.5)


def test_mops_on_a_quantised_backbone(simulate, wide_llama):
    losses = total(simulate("quantised", model=wide_llama, compression="nf4", engine="cohort"))
    assert len(losses) == ROUNDS + 1
    assert losses[-1] < losses[0]
