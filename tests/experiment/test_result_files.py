"""Result files: what they are named by, what they hold, and who may write them."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from instruction_files import write_dolly
from synthetic import write_run

from experiments.golden.tiny import save_tiny_llama
from mops_fl.code_digest import syntax
from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.experiment import result_files
from mops_fl.experiment.plan import Cell
from mops_fl.experiment.result_files import Identity, Store, identify, read_result
from mops_fl.run.results import Run

IDENTITY = Identity({"alpha": 0.5}, {"model": "m", "rows": "r"}, "c" * 64)
CELL = Cell("mops", (("alpha", 0.5),), Config.from_flat({"alpha": 0.5}))


def test_a_result_gives_what_its_run_gave(tmp_path):
    folder = write_run(tmp_path / "run", rounds=5)
    store = Store(tmp_path / "results")
    file = store.keep(CELL, IDENTITY, folder)
    assert file.name == f"0.5-mops-seed0-{IDENTITY.hash[:8]}.json"
    (found,) = store.results()
    run = Run.read(folder)
    assert (found.entry, found.point, found.hash) == ("mops", CELL.point, IDENTITY.hash)
    assert found.run.measures() == pytest.approx(run.measures(), nan_ok=True)
    pd.testing.assert_frame_equal(found.run.rounds, run.rounds)
    pd.testing.assert_frame_equal(found.run.gate, run.gate)
    # clients are there for the rounds that a run is judged by
    assert set(found.run.evaluation["round"]) == {0, 5}
    assert found.run.validation.empty
    with pytest.raises(RunError, match=r"has no clients.csv"):
        found.run.rows("clients.csv")


def test_no_place_of_this_machine_is_in_a_result(tmp_path):
    folder = write_run(tmp_path / "run", config={"data-path": str(tmp_path / "secret")})
    file = Store(tmp_path / "results").keep(CELL, IDENTITY, folder)
    assert str(tmp_path) not in file.read_text()


def test_a_file_that_is_cut_off_is_no_result(tmp_path):
    file = Store(tmp_path).keep(CELL, IDENTITY, write_run(tmp_path / "run"))
    for text in (file.read_text()[:200], "[]", json.dumps({"format": 99})):
        file.write_text(text)
        with pytest.raises(RunError, match=str(file)):
            read_result(file)


def test_a_failure_stands_apart_and_goes_with_a_result(tmp_path):
    store = Store(tmp_path / "results")
    store.fail(CELL, IDENTITY, "the disk is full")
    assert store.results() == []
    assert "the disk is full" in store.failure(CELL, IDENTITY).read_text()
    store.keep(CELL, IDENTITY, write_run(tmp_path / "run"))
    assert not store.failure(CELL, IDENTITY).exists()


OTHER = """
import sys
from pathlib import Path

sys.path[:0] = sys.argv[2:]
from test_result_files import CELL, IDENTITY, Store

with Store(Path(sys.argv[1])).claimed(CELL, IDENTITY) as mine:
    print(mine)
"""


def test_one_process_holds_a_cell(tmp_path):
    def asked() -> str:
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", OTHER, str(tmp_path), here, *sys.path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with Store(tmp_path).claimed(CELL, IDENTITY) as mine:
        assert mine
        assert asked() == "False"
    assert asked() == "True"


@pytest.fixture(scope="module")
def cell(tmp_path_factory) -> Cell:
    folder = tmp_path_factory.mktemp("cell")
    model = save_tiny_llama(folder / "llama")
    rows = write_dolly(folder / "rows.jsonl", ("a", "b"), 40)
    values = {"model": str(model), "dataset": "dolly", "data-path": str(rows), "tasks": "a,b"}
    sizes = {"num-samples": 0, "num-clients": 2, "active-clients": 2}
    return Cell("mops", (), Config.from_flat({**values, **sizes}))


def test_the_hash_is_that_of_what_the_numbers_depend_on(cell, tmp_path, monkeypatch):
    first = identify(cell)
    assert identify(cell) == first

    def changed(**data) -> str:
        return identify(replace(cell, config=replace(cell.config, **data))).hash

    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes((tmp_path / cell.config.data.data_path).read_bytes())
    assert changed(data=replace(cell.config.data, data_path=str(moved))) == first.hash
    assert changed(run_dir=str(tmp_path)) == first.hash
    other = write_dolly(tmp_path / "other.jsonl", ("a", "b"), 41)
    others = {
        changed(data=replace(cell.config.data, data_path=str(other))),
        changed(train=replace(cell.config.train, local_steps=7)),
        changed(seed=1),
    }
    monkeypatch.setattr(result_files, "code_digest", lambda: "0" * 64)
    others.add(identify(cell).hash)
    assert len({*others, first.hash}) == 5


FUNCTION = '''
def f(a, *, b: int = 2) -> str:
    """Says."""
    return f"{a!r}x{b:>{a}}" "y" if a is not None else None
'''


def test_code_is_the_same_code_under_every_python():
    # seen with 3.11, 3.12 and 3.13, whose own dumps differ
    digest = hashlib.sha256(syntax(FUNCTION).encode()).hexdigest()
    assert digest == "5508748aefd427e6807b251b154e32fd5de4c7a6c4939ff23f69cfa8c5fd7695"


def test_comments_and_docstrings_are_no_code():
    text = 'def f(x):\n    """Says."""\n    return x + 1  # one\n'
    same = 'def f(x):\n    """Says more."""\n\n    # two\n    return (x + 1)\n'
    assert syntax(text) == syntax(same)
    assert syntax(text) != syntax(text.replace("1", "2"))
