"""A whole run with differential privacy over Flower and Ray: what it tells, and what it keeps."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import small_run
from safetensors.numpy import load_file

from mops_fl.run import read

pytestmark = pytest.mark.slow

VALUES = {
    **{"num-clients": 10, "unseen-clients": 0.2, "active-clients": 4, "num-samples": 200},
    **{"num-server-rounds": 5, "eval-every": 2, "local-steps": 4, "engine": "cohort"},
    **{"dp": "central", "clip-norm": 0.05, "noise-multiplier": 4, "noise-cohort": 8},
    **{"aggregation": "fedavgm", "gate-sync": "frozen", "max-epsilon": 2.5},
}
LAST = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama) -> Path:
    folder = tmp_path_factory.mktemp("private")
    return small_run.simulate(folder, "private", {**VALUES, "model": tiny_llama})


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_the_budget_ends_it_with_an_evaluation(run):
    train = pd.read_csv(run / "train.csv")
    assert [*train["round"]] == [*range(1, LAST + 1)]
    assert train["epsilon"].is_monotonic_increasing
    assert train["epsilon"].iloc[-1] <= 2.5
    assert facts(run)["status"] == "completed"
    assert facts(run)["stopped"] == f"max-epsilon=2.5: round {LAST + 1} would cost more"
    assert [*pd.read_csv(run / "rounds.csv").query("task == 'all'")["round"]] == [0, 2, LAST]


def test_clients_that_train_tell_no_losses(run):
    unseen = facts(run)["unseen_clients"]
    assert set(pd.read_csv(run / "evaluation.csv")["partition"]) == {*unseen}
    assert (pd.read_csv(run / "clients.csv")[["nll", "tokens"]] == 0).all(axis=None)
    assert (pd.read_csv(run / "train.csv")[["nll", "tokens"]] == 0).all(axis=None)
    assert not (run / "drift.csv").exists()


def test_the_perplexity_is_that_of_clients_that_never_train(run):
    rounds = pd.read_csv(run / "rounds.csv").query("task == 'all'").set_index("round")
    sums = pd.read_csv(run / "evaluation.csv").groupby("round")[["nll", "tokens"]].sum()
    pd.testing.assert_frame_equal(rounds[["nll", "tokens"]], sums)
    assert (rounds["share"] == 1).all()


def test_epsilon_and_noise_are_shown_together_and_for_whom(run):
    measures = read(run).measures()
    assert measures["epsilon"] == pd.read_csv(run / "train.csv")["epsilon"].iloc[-1]
    assert measures["signal to noise"] == pd.read_csv(run / "train.csv")["snr"].iloc[-1]
    assert measures["perplexity"] == pytest.approx(measures["unseen clients"])
    done = subprocess.run(
        [small_run.COMMAND, "show", str(run)], capture_output=True, text=True, check=True
    )
    shown = " ".join(done.stdout.split())
    assert "noise as of 8" in shown
    assert "clients that never" in shown


def test_a_run_that_lost_its_end_is_resumed_to_the_same_numbers(run, tmp_path):
    cut = small_run.cut(run, tmp_path / "cut", LAST - 1)
    small_run.resume(cut)
    for each in ("rounds", "evaluation"):
        assert (cut / f"{each}.csv").read_bytes() == (run / f"{each}.csv").read_bytes()
    last = f"checkpoints/round-{LAST:03d}.safetensors"
    kept, made = load_file(run / last), load_file(cut / last)
    assert kept.keys() == made.keys()
    assert all((kept[name] == made[name]).all() for name in kept)
    spent = [pd.read_csv(folder / "train.csv")["epsilon"] for folder in (run, cut)]
    assert spent[0].equals(spent[1])
