"""Reading run folders: what is right is read, what is wrong is named."""

import json
import math

import numpy as np
import pytest
from synthetic import LABELS, write_run, write_table

from mops_fl.errors import RunError
from mops_fl.run.results import Replicates, Run, summary

HEADER = "round,task,nll,tokens,perplexity\n"


def test_a_run_is_read(tmp_path):
    run = Run.read(write_run(tmp_path / "one", rounds=3))
    assert run.name == "one"
    assert run.label == "one (mops)"
    assert run.tasks == ["sort", "count"]
    assert list(run.perplexity().index) == [0, 1, 2, 3]
    assert run.perplexity("sort").iloc[0] > run.perplexity("sort").iloc[-1]
    assert set(run.gate["expert"]) == {0, 1}
    assert run.train["clients"].sum() == 30


def test_infinite_perplexity_is_read(tmp_path):
    folder = write_run(tmp_path / "one")
    text = (folder / "rounds.csv").read_text().splitlines()
    text[1] = "0,all,90000.0,100,inf,1.0"
    text[2] = "0,sort,0.0,0,nan,1.0"
    (folder / "rounds.csv").write_text("\n".join(text) + "\n")
    run = Run.read(folder)
    assert run.perplexity().iloc[0] == math.inf
    assert math.isnan(run.perplexity("sort").iloc[0])


def test_every_label_is_text(tmp_path):
    run = Run.read(write_run(tmp_path / "one", tasks=LABELS))
    assert run.tasks == list(LABELS)
    assert list(run.gate["task"].unique()) == list(LABELS)
    for task in (None, *LABELS):
        curve = run.perplexity(task)
        assert list(curve.index) == [0, 1, 2, 3, 4]
        assert curve[0] == pytest.approx(500)


def test_labels_that_are_all_numbers_or_all_missing(tmp_path):
    for name, tasks in {"numbers": ("1", "2"), "missing": ("None", "NA")}.items():
        run = Run.read(write_run(tmp_path / name, tasks=tasks))
        assert list(run.gate["task"].unique()) == list(tasks)


def test_a_task_called_all_is_not_the_total(tmp_path):
    folder = write_run(tmp_path / "one", rounds=0)
    rows = [(0, "all", 4.0, 2, 7.4, 1.0), (0, "all", 1.0, 1, 2.7, 1.0), (0, "b", 3.0, 1, 20.1, 1.0)]
    write_table(folder / "rounds.csv", rows)
    run = Run.read(folder)
    assert run.tasks == ["all", "b"]
    assert (run.perplexity()[0], run.perplexity("all")[0]) == (7.4, 2.7)


def test_a_folder_of_a_version_without_evaluations(tmp_path):
    folder = write_run(tmp_path / "one")
    assert len(Run.read(folder).evaluations) == 5
    (folder / "evaluate.csv").unlink()
    assert Run.read(folder).evaluations.empty


def test_the_standard_error_is_that_of_a_ratio_over_clients(tmp_path):
    folder = write_run(tmp_path / "one", rounds=0)
    run = Run.read(folder)
    loss = math.log(run.perplexity()[0])
    # two clients, a tenth of the loss to either side: deviations d, -d of their sums
    assert run.standard_error()[0] == pytest.approx(0.1 * loss)
    assert run.standard_error("sort")[0] == pytest.approx(0.1 * loss)
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 50, 400)
    nll = tokens * generator.gamma(4, 0.5, 400)
    rows = ((0, p, "a", float(nll[p]), int(tokens[p])) for p in range(400))
    write_table(folder / "evaluation.csv", rows)
    picked = generator.integers(0, 400, (2000, 400))
    bootstrap = (nll[picked].sum(1) / tokens[picked].sum(1)).std()
    assert Run.read(folder).standard_error()[0] == pytest.approx(bootstrap, rel=0.1)


def test_one_client_has_no_standard_error(tmp_path):
    folder = write_run(tmp_path / "one", rounds=0)
    write_table(folder / "evaluation.csv", [(0, 3, "a", 2.0, 1)])
    assert math.isnan(Run.read(folder).standard_error()[0])
    (folder / "evaluation.csv").unlink()
    assert Run.read(folder).standard_error().empty


def test_what_is_not_a_run_folder(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        Run.read(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"it has no run\.json"):
        Run.read(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*run\.json"):
        Run.read(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"method": "mops"}))
    with pytest.raises(RunError, match="lacks status, config, seed"):
        Run.read(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunError, match="lacks method"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"has no rounds\.csv"),
        ("", "has the columns none; expected round"),
        ("round,task\n", "expected round, task, nll"),
        (
            "round,task,nll,tokens,perplexity\n0,all,x,1,2\n",
            "column nll holds 'x', which is not a number",
        ),
        (f"{HEADER}0,all,1,1.5,2\n", "column tokens holds '1.5', which is not a whole number"),
        (f"{HEADER}0,all,1,True,2\n", "column tokens holds 'True'"),
        (f"{HEADER}0,all,,1,2\n", "column nll holds ''"),
        (f"{HEADER}0,all,1\n", "3 cells instead of 5"),
        (HEADER, "no row for the task 'all'"),
        ("round,task,nll,tokens,perplexity\n0,sort,1,1,2\n", "no row for the task 'all'"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, message):
    folder = write_run(tmp_path / "one")
    (folder / "rounds.csv").unlink()
    if text is not None:
        (folder / "rounds.csv").write_text(text)
    with pytest.raises(RunError, match=message):
        _ = Run.read(folder).rounds


def test_a_run_without_gate(tmp_path):
    run = Run.read(write_run(tmp_path / "one", method="fedprompt"))
    with pytest.raises(RunError, match=r"has no gate\.csv"):
        _ = run.gate


UNSEEN = {"unseen_clients": [2], "unseen_tasks": ["new"], "kept_round": 1}
LOSSES = {
    (0, "a"): 1.0,
    (0, "new"): 5.0,
    (1, "a"): 3.0,
    (1, "new"): 7.0,
    (2, "a"): 4.0,
    (2, "new"): 9.0,
}
"""Of partition and task, in nats a token, in round 1."""


def write_unseen(folder, **facts):
    """Clients 0 and 1 train task a; client 2 and the task `new` never do."""
    run = write_run(folder, rounds=2, tasks=("a", "new"), **{**UNSEEN, **facts})
    rows = [(n, p, t, 10 * (x + n - 1), 10) for n in range(3) for (p, t), x in LOSSES.items()]
    write_table(run / "evaluation.csv", rows)
    parts = [(p, t, 9, tests) for t in ("a", "new") for p, tests in enumerate((3, 4, 6))]
    write_table(run / "partition.csv", parts)
    return run


def test_what_never_trained_is_apart_from_the_total(tmp_path):
    run = Run.read(write_unseen(tmp_path / "one"))
    assert run.held_out == (2, 7)
    spread = run.spread()
    assert (spread.every.loss, spread.every.clients, spread.every.rows) == (2.0, 2, 7)
    assert (spread.worst.loss, spread.worst.rows) == (3.0, 4)
    unseen = run.spread(unseen_clients=True)
    assert (unseen.every.loss, unseen.every.clients, unseen.every.rows) == (4.0, 1, 6)
    measures = run.measures()
    assert measures["unseen clients"] == pytest.approx(math.exp(4))
    assert measures["unseen tasks"] == pytest.approx(math.exp(6))
    # Cochran's: two clients, one nat to either side
    assert run.standard_error()[1] == pytest.approx(1.0)
    assert run.standard_error("new")[1] == pytest.approx(1.0)


def test_rows_are_those_that_are_evaluated(tmp_path):
    run = Run.read(write_unseen(tmp_path / "one", config={"eval-samples": 3}))
    assert run.held_out == (2, 6)
    assert run.spread().every.rows == 6


def test_the_round_that_counts(tmp_path):
    assert Run.read(write_run(tmp_path / "old", rounds=3)).result_round == 3
    run = Run.read(write_unseen(tmp_path / "one"))
    assert run.result_round == 1
    assert run.measures()["perplexity"] == run.perplexity()[1]
    assert run.spread(2).every.loss == 3.0


def test_a_run_of_an_older_version_has_no_clients(tmp_path):
    folder = write_run(tmp_path / "one")
    (folder / "evaluation.csv").unlink()
    run = Run.read(folder)
    assert run.spread() is None
    assert run.personalised() is None
    assert run.validation_perplexity().empty
    assert run.diagnostics().empty
    known = {name for name, value in run.measures().items() if not math.isnan(value)}
    assert known == {"perplexity", "seconds"}


def test_personalisation_compares_the_same_clients(tmp_path):
    folder = write_unseen(tmp_path / "one")
    write_table(folder / "personal.csv", [(1, 1, "a", 20.0, 10), (1, 2, "a", 1.0, 10)])
    found = Run.read(folder).personalised()
    assert found.perplexity_before == pytest.approx(math.exp(3))
    assert found.perplexity_after == pytest.approx(math.exp(2))
    assert (found.before.worst.loss, found.after.worst.loss) == (3.0, 2.0)
    assert found.after.every.clients == 1


def test_validation_perplexity_is_over_what_trains(tmp_path):
    folder = write_unseen(tmp_path / "one")
    rows = [(0, 0, "a", 4.0, 2), (0, 2, "a", 9.0, 1), (1, 0, "a", 2.0, 2), (1, 1, "new", 9.0, 1)]
    write_table(folder / "validation.csv", rows)
    curve = Run.read(folder).validation_perplexity()
    assert list(curve) == pytest.approx([math.exp(2), math.exp(1)])


def test_diagnostics_are_a_line_a_round(tmp_path):
    folder = write_run(tmp_path / "one")
    write_table(folder / "entropy.csv", [(0, "a", 1.0), (0, "b", 0.5), (1, "a", 0.2)])
    loads = [(0, "a", 0, 1.0), (0, "a", 1, 0.0), (0, "b", 0, 0.2), (0, "b", 1, 0.8)]
    write_table(folder / "load.csv", loads)
    found = Run.read(folder).diagnostics()
    assert list(found.columns) == ["entropy", "largest load"]
    assert found["entropy"].to_dict() == {0: 0.75, 1: 0.2}
    assert found["largest load"][0] == pytest.approx(0.6)
    write_table(folder / "drift.csv", [(1, 0, 0.9, 0.1), (1, 1, 0.7, -0.3)])
    found = Run.read(folder).diagnostics()
    assert tuple(found.loc[1, ["cosine", "update cosine"]]) == pytest.approx((0.8, -0.1))
    assert math.isnan(found["cosine"][0])


def replicates(folder, seeds, **options):
    folders = [write_run(folder / str(s), config={"seed": s}, **options) for s in seeds]
    return Replicates(folder.name, tuple(map(Run.read, folders)))


def test_a_summary_is_mean_and_deviation_over_seeds(tmp_path):
    one = write_run(tmp_path / "a", end=10, trainable_parameters=7)
    two = write_run(tmp_path / "b", end=30, config={"seed": 1}, trainable_parameters=7)
    other = replicates(tmp_path / "other", [0], method="fedprompt")
    runs = (Run.read(one), Run.read(two))
    rows = summary([Replicates("mops", runs), other])
    assert list(rows) == ["mops", "other"]
    names = ["perplexity", "worst 10 %", "parameters", "seconds"]
    assert [list(row) for row in rows.values()] == [names, names]
    ends = [run.perplexity().iloc[-1] for run in runs]
    found = rows["mops"]["perplexity"]
    assert (found.mean, found.sd) == pytest.approx((np.mean(ends), np.std(ends, ddof=1)))
    assert (found.n, rows["other"]["perplexity"].n, rows["other"]["parameters"].n) == (2, 1, 0)
    assert (rows["mops"]["parameters"].mean, rows["mops"]["parameters"].sd) == (7, 0)
    assert math.isnan(rows["other"]["perplexity"].sd)


def test_only_runs_of_one_configuration_are_averaged(tmp_path):
    one = Run.read(write_run(tmp_path / "a"))
    other = Run.read(write_run(tmp_path / "b", config={"seed": 1, "gate-sync": "local"}))
    with pytest.raises(RunError, match="differ in gate-sync: only runs that differ in nothing"):
        Replicates("x", (one, other))
    with pytest.raises(RunError, match="have the same seed"):
        Replicates("x", (one, one))
    with pytest.raises(RunError, match="there is no run"):
        Replicates("x", ())


def test_seeds_meet_in_the_rounds_that_all_evaluated(tmp_path):
    runs = (
        Run.read(write_run(tmp_path / "a", rounds=3, end=10)),
        Run.read(write_run(tmp_path / "b", rounds=2, config={"seed": 1})),
    )
    curves = Replicates("x", runs).curves()
    assert list(curves.index) == [0, 1, 2]
    assert list(curves.mean(axis=1)) == pytest.approx(
        [(runs[0].perplexity()[n] + runs[1].perplexity()[n]) / 2 for n in range(3)]
    )


def test_a_round_on_fewer_tokens_says_so(tmp_path):
    folder = write_run(tmp_path / "one", rounds=2)
    rows = [(n, t, 4.0, 2, 7.4, 0.5 if n == 1 else 1.0) for n in range(3) for t in ("all", "b")]
    write_table(folder / "rounds.csv", rows)
    run = Run.read(folder)
    assert run.share().tolist() == [1.0, 0.5, 1.0]
    assert run.share("b")[1] == 0.5
    whole = Run.read(write_run(tmp_path / "two", rounds=2, config={"seed": 1}))
    assert Replicates("x", (whole, run)).shares().to_dict() == {1: 0.5}


def test_a_folder_of_a_version_without_shares_is_read(tmp_path):
    folder = write_run(tmp_path / "one")
    lines = (folder / "rounds.csv").read_text().splitlines()
    (folder / "rounds.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    run = Run.read(folder)
    assert run.perplexity().iloc[0] == pytest.approx(500)
    assert run.share().isna().all()
    assert Replicates("x", (run,)).shares().empty
    tables = {"rounds.csv": [row[:5] for row in run.rows("rounds.csv")]}
    assert Run(folder, run.facts, tables).share().isna().all()
