"""The notebook runs as it stands, on any two runs, and is kept without outputs."""

from pathlib import Path

import pytest
from synthetic import write_run

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"


def test_it_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [None] * len(code)
    assert not any(cell.outputs for cell in code)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    runs = [
        write_run(tmp_path / "mops", end=20, config={"seed": 1}),
        write_run(tmp_path / "base", method="base", rounds=0, tasks=["sort"]),
    ]
    monkeypatch.setenv("MOPS_FL_RUNS", ":".join(map(str, runs)))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert kinds.count("text/html") >= 4
    assert not [output for output in outputs if output.output_type == "stream"]
