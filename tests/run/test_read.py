"""The public way to a run's tables."""

import subprocess
import sys

import pytest
from synthetic import write_run, write_table

from mops_fl.errors import RunError
from mops_fl.run import read
from mops_fl.run.folder import COLUMNS


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, mops_fl.run\n"
        "sys.exit(bool({'numpy', 'pandas', 'torch', 'flwr', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_is_read_by_its_path(tmp_path):
    run = read(str(write_run(tmp_path / "run")))
    assert run.perplexity()[0] == pytest.approx(500)
    with pytest.raises(RunError, match="no such folder"):
        read(tmp_path / "nowhere")


def test_any_table_by_its_file(tmp_path):
    folder = write_run(tmp_path / "run")
    write_table(folder / "drift.csv", [(1, 0, 0.5, -0.5)])
    run = read(folder)
    assert run.table("drift.csv").to_dict("list") == {
        "round": [1],
        "expert": [0],
        "cosine": [0.5],
        "update_cosine": [-0.5],
    }
    assert list(run.table("load.csv").columns) == list(COLUMNS["load.csv"])
    assert run.table("load.csv").empty
    with pytest.raises(RunError, match=r"no run has a table 'drift': there are rounds\.csv, "):
        run.table("drift")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("rounds", "rounds.csv"),
        ("train", "train.csv"),
        ("evaluations", "evaluate.csv"),
        ("evaluation", "evaluation.csv"),
        ("gate", "gate.csv"),
    ],
)
def test_the_columns_that_the_docstring_names_are_there(tmp_path, name, table):
    assert [*getattr(read(write_run(tmp_path / "run")), name).columns] == [*COLUMNS[table]]
    described = read.__doc__.split(f"``{name}``")[1].split("``")[0]
    assert all(column in described for column in COLUMNS[table])
