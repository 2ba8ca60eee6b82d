"""What is held back, reference rows and personalisation, in whole runs over Flower and Ray."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_run
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

ROUNDS = 3
HELD_BACK = {
    "num-server-rounds": ROUNDS,
    "num-clients": 8,
    "active-clients": 3,
    "num-samples": 200,
    "local-steps": 4,
    "learning-rate": 0.02,
    "unseen-clients": 0.25,
    "unseen-tasks": "numbers",
    "validation-fraction": 0.2,
    "personal-steps": 3,
    "evaluate-clients": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("evidence")
    (folder / "model").symlink_to(tiny_llama)
    return folder


def simulate(folder: Path, name: str, **values) -> Path:
    values = {key.replace("_", "-"): value for key, value in values.items()}
    return small_run.simulate(folder, name, {**HELD_BACK, "model": "./model", **values})


@pytest.fixture(scope="module")
def whole(folder):
    """MoPs with one expert an example and everything held back, kept at the best round; the server
    steps with Adam, and one client attacks."""
    values = {"gate_top": 1, "keep": "best", "evaluate_clients": 0, "cohort_size": 2}
    values |= {"aggregation": "fedadam", "malicious_clients": 1}
    return simulate(folder, "whole", engine="cohort", **values)


@pytest.fixture(scope="module")
def together(folder):
    """IA³ on the rows of all, in one place."""
    return simulate(folder, "together", training="centralised", method="ia3", evaluate_clients=0)


@pytest.fixture(scope="module")
def local(folder):
    return simulate(folder, "local", training="local", method="lora", engine="clients")


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(run / f"{name}.csv", keep_default_na=False)


@pytest.mark.parametrize("name", ["whole", "local"])
def test_unseen_clients_never_train(name, request):
    run = request.getfixturevalue(name)
    unseen = set(facts(run)["unseen_clients"])
    assert len(unseen) == 2
    assert not unseen & set(table(run, "clients")["partition"])


def test_a_sample_of_clients_is_evaluated_and_all_after_the_last_round(local):
    unseen = set(facts(local)["unseen_clients"])
    evaluated = table(local, "evaluation").groupby("round")["partition"].agg(set)
    assert evaluated[ROUNDS] == set(range(8))
    # a sample of those that train, the same in every round but the last
    assert evaluated[0] == evaluated[1]
    assert len(evaluated[0]) == 4
    assert not evaluated[0] & unseen


def test_unseen_tasks_have_no_training_rows(whole):
    held = table(whole, "partition").query("task == 'numbers'")
    assert held["train"].sum() == 0
    assert held["test"].sum() > 0


def test_sums_over_clients_are_the_rounds(whole):
    evaluation = table(whole, "evaluation")
    seen = evaluation[~evaluation["partition"].isin(facts(whole)["unseen_clients"])]
    for server_round, rows in table(whole, "rounds").groupby("round"):
        own = seen[seen["round"] == server_round].groupby("task")[["nll", "tokens"]].sum()
        total, tasks = rows.iloc[0], rows.iloc[1:].set_index("task")[["nll", "tokens"]]
        pd.testing.assert_frame_equal(own.sort_index(), tasks.sort_index(), check_dtype=False)
        trained = own.drop(index="numbers", errors="ignore").sum()
        assert total["nll"] == pytest.approx(trained["nll"])
        assert total["tokens"] == trained["tokens"]


def test_the_kept_round_is_the_best_on_validation_rows(whole):
    validation = table(whole, "validation")
    assert not set(validation["partition"]) & set(facts(whole)["unseen_clients"])
    assert "numbers" not in set(validation["task"])
    common = set.intersection(*validation.groupby("round")["partition"].agg(set))
    shared = validation[validation["partition"].isin(common)]
    sums = shared.groupby("round")[["nll", "tokens"]].sum()
    assert facts(whole)["kept_round"] == (sums["nll"] / sums["tokens"]).idxmin()


def test_every_client_is_personalised_from_the_kept_round(whole):
    personal = table(whole, "personal")
    assert set(personal["round"]) == {facts(whole)["kept_round"]}
    assert set(personal["partition"]) == set(range(8))
    last = table(whole, "evaluation").query(f"round == {ROUNDS}")
    keys = ["partition", "task", "tokens"]
    pd.testing.assert_frame_equal(
        personal[keys].reset_index(drop=True), last[keys].reset_index(drop=True)
    )
    assert (personal["nll"].to_numpy() != last["nll"].to_numpy()).all()


def test_the_mixture_is_described_round_by_round(whole):
    drift = table(whole, "drift")
    assert [*drift["round"].unique()] == [1, 2, 3]
    assert drift[["cosine", "update_cosine"]].abs().max().max() <= 1
    load, entropy = table(whole, "load"), table(whole, "entropy")
    shares = load.groupby(["round", "task"])["load"].sum()
    np.testing.assert_allclose(shares, 1)
    assert entropy["entropy"].between(0, np.log(2) + 1e-6).all()


def test_local_clients_keep_tensors_of_their_own(local):
    assert facts(local)["trainable_parameters"] == 4 * 8 * (32 + 32 + 32 + 16)
    trained = table(local, "clients").groupby("round")["partition"].agg(list)
    seen = [p for p in range(8) if p not in facts(local)["unseen_clients"]]
    assert all(partitions == seen for partitions in trained)
    kept = load_file(local / "checkpoints" / f"round-{ROUNDS:03d}.safetensors")
    name = "lora.self_attn.q_proj.b"
    assert len({kept[f"{partition}/{name}"].tobytes() for partition in seen}) == len(seen)
    assert all((kept[f"{p}/{name}"] == 0).all() for p in facts(local)["unseen_clients"])


@pytest.mark.parametrize("name", ["whole", "local", "together"])
def test_a_run_that_lost_its_end_is_resumed_to_the_same_numbers(name, request, tmp_path):
    run = request.getfixturevalue(name)
    cut = small_run.cut(run, tmp_path / "cut", 1)
    small_run.resume(cut)
    for each in ("rounds", "evaluation", "validation", "personal"):
        assert (cut / f"{each}.csv").read_bytes() == (run / f"{each}.csv").read_bytes()
    last = f"checkpoints/round-{ROUNDS:03d}.safetensors"
    assert (cut / last).read_bytes() == (run / last).read_bytes()
    assert facts(cut)["kept_round"] == facts(run)["kept_round"]


def test_base_trains_nothing(folder):
    base = simulate(folder, "base", method="base", personal_steps=0)
    assert facts(base)["trainable_parameters"] == facts(base)["bytes_per_round"] == 0
    assert [*table(base, "rounds")["round"].unique()] == [0]
    assert set(table(base, "evaluation")["partition"]) == set(range(8))


def test_centralised_trains_on_all_rows(together):
    (examples,) = table(together, "clients")["examples"].unique()
    held = table(together, "partition")
    seen = held[~held["partition"].isin(facts(together)["unseen_clients"])]
    assert examples == seen["train"].sum()
