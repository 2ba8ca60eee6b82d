"""Reading run folders: what is right is read, what is wrong is named."""

import json
import math

import pytest
from synthetic import LABELS, write_run, write_table

from mops_fl.errors import RunError
from mops_fl.run.results import Run

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
    text[1] = "0,all,90000.0,100,inf"
    text[2] = "0,sort,0.0,0,nan"
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
    rows = [(0, "all", 4.0, 2, 7.4), (0, "all", 1.0, 1, 2.7), (0, "b", 3.0, 1, 20.1)]
    write_table(folder / "rounds.csv", rows)
    run = Run.read(folder)
    assert run.tasks == ["all", "b"]
    assert (run.perplexity()[0], run.perplexity("all")[0]) == (7.4, 2.7)


def test_a_folder_of_a_version_without_evaluations(tmp_path):
    folder = write_run(tmp_path / "one")
    assert len(Run.read(folder).evaluations) == 5
    (folder / "evaluations.csv").unlink()
    assert Run.read(folder).evaluations.empty


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
