"""Reading run folders: what is right is read, what is wrong is named."""

import json

import pytest
from synthetic import write_run

from mops_fl.errors import RunError
from mops_fl.run.results import Run


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
    (folder / "rounds.csv").write_text("\n".join(text) + "\n")
    assert Run.read(folder).perplexity().iloc[0] == float("inf")


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
        ("", r"cannot read .*rounds\.csv"),
        ("round,task\n", "expected round, task, nll"),
        ("round,task,nll,tokens,perplexity\n0,all,x,1,2\n", "column nll holds something"),
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
