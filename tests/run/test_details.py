"""Which runs are one, what failed, and who holds what."""

import pytest
from large_run import write_large
from synthetic import LABELS, write_run

from mops_fl.run.details import (
    Failure,
    failure_counts,
    failures,
    grouped,
    held_out,
    holdings,
    is_evaluated,
    trainings,
)
from mops_fl.run.results import Run


def read(folder, **options):
    return Run.read(write_run(folder, **options))


def test_runs_that_differ_in_the_seed_are_one(tmp_path):
    runs = [
        read(tmp_path / f"{method}{seed}", method=method, config={"seed": seed})
        for seed in (0, 1)
        for method in ("mops", "lora")
    ]
    groups = grouped(runs)
    assert [group.label for group in groups] == ["mops", "lora"]
    assert [[run.facts["seed"] for run in group.runs] for group in groups] == [[0, 1], [0, 1]]


def test_what_is_not_completed_is_in_no_mean(tmp_path):
    runs = [
        read(tmp_path / "a"),
        read(tmp_path / "b", config={"seed": 1}, status="running"),
        read(tmp_path / "c", config={"seed": 2}),
    ]
    groups = grouped(runs)
    assert [group.label for group in groups] == ["mops", "mops (seed 1, running)"]
    assert [len(group.runs) for group in groups] == [2, 1]


def test_labels_say_what_differs(tmp_path):
    runs = [
        read(tmp_path / "a"),
        read(tmp_path / "b", config={"gate-top": 1}),
        read(tmp_path / "c", method="lora"),
    ]
    assert [group.label for group in grouped(runs)] == ["mops", "mops:gate-top=1", "lora"]


def test_another_run_of_a_seed_is_told_apart_by_its_name(tmp_path):
    runs = [read(tmp_path / "a"), read(tmp_path / "b"), read(tmp_path / "other" / "b")]
    labels = [group.label for group in grouped(runs)]
    assert labels == ["mops (a)", "mops (b)", "mops (b) [2]"]


def test_a_label_is_no_longer_than_a_name(tmp_path):
    runs = [read(tmp_path / "a"), read(tmp_path / "b", config={"data-path": "p" * 90})]
    assert [group.label for group in grouped(runs)] == ["mops", "mops (b)"]


def test_failures_are_in_the_order_of_rounds(tmp_path):
    run = read(
        tmp_path / "a",
        train_failures={"10": {"2": "late"}, "2": {"11": "NaN", "3": "late"}},
        evaluation_failures={"2": {"1": "gone"}},
    )
    assert failures(run) == [
        Failure("training", 2, 3, "late"),
        Failure("training", 2, 11, "NaN"),
        Failure("evaluation", 2, 1, "gone"),
        Failure("training", 10, 2, "late"),
    ]
    assert failure_counts(run) == {"training": 0, "evaluation": 5}
    assert failures(read(tmp_path / "b")) == []


def test_holdings_are_those_of_the_table(tmp_path):
    run = Run.read(write_large(tmp_path / "a", tasks=("x", "nan", "None"), clients=7))
    table = run.table("partition.csv")
    train, test = holdings(run), held_out(run)
    assert [*train.columns] == ["x", "nan", "None"]
    for row in table.itertuples():
        assert train.loc[row.partition, row.task] == row.train
        assert test.loc[row.partition, row.task] == row.test
    every = Run.read(write_run(tmp_path / "b", tasks=LABELS))
    assert [*holdings(every).columns] == list(LABELS)
    (every.folder / "partition.csv").unlink()
    assert holdings(Run.read(every.folder)).empty


def test_a_run_without_a_round_is_not_evaluated(tmp_path):
    run = read(tmp_path / "a")
    assert is_evaluated(run)
    assert trainings(run).empty
    (run.folder / "rounds.csv").write_text("round,task,nll,tokens,perplexity,share\n")
    assert not is_evaluated(run)
    (run.folder / "rounds.csv").unlink()
    assert not is_evaluated(run)


def test_costs_are_means_and_seconds_those_of_one_machine(tmp_path):
    one, other = ({"processor": name, "cores": 2} for name in ("A", "B"))
    runs = [
        read(tmp_path / "a", machine=one),
        read(tmp_path / "b", config={"seed": 1}, machine=other),
    ]
    (group,) = grouped(runs)
    costs = group.costs(runs[0].machine)
    assert costs["bytes"].to_dict() == {n: pytest.approx(3000 * n) for n in range(5)}
    assert costs["seconds"].to_dict() == {n: pytest.approx(3.5 * n) for n in range(5)}
