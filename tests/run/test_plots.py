"""Figures: drawn whole or not at all, from any run folders."""

import subprocess
import sys

import pytest
from matplotlib.image import imread
from synthetic import write_run

from mops_fl.errors import RunError
from mops_fl.run.plots import gate_figure, perplexity_figure


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("end", [20, 400])
def test_perplexity_of_two_runs(tmp_path, per_task, end):
    runs = [write_run(tmp_path / m, method=m, end=end) for m in ("mops", "fedprompt")]
    perplexity_figure(runs, tmp_path / "out" / "figure.png", per_task)
    assert imread(tmp_path / "out" / "figure.png").std() > 0.05
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["figure.png"]


def test_more_runs_than_colours(tmp_path):
    runs = [write_run(tmp_path / str(n), rounds=n) for n in range(9)]
    perplexity_figure(runs, tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_infinite_perplexity_leaves_a_gap(tmp_path):
    run = write_run(tmp_path / "run")
    text = (run / "rounds.csv").read_text().splitlines()
    text[1] = "0,all,90000.0,100,inf"
    (run / "rounds.csv").write_text("\n".join(text) + "\n")
    perplexity_figure([run], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize("rounds", [0, 4])
def test_gate_before_and_after(tmp_path, rounds):
    gate_figure(write_run(tmp_path / "run", rounds=rounds), tmp_path / "gate.png")
    assert imread(tmp_path / "gate.png").std() > 0.05


def test_what_cannot_be_drawn(tmp_path):
    run = write_run(tmp_path / "run", method="fedprompt")
    with pytest.raises(RunError, match="no run to plot"):
        perplexity_figure([], tmp_path / "figure.png")
    with pytest.raises(RunError, match="its ending must be one of"):
        perplexity_figure([run], tmp_path / "figure.xyz")
    with pytest.raises(RunError, match=r"has no gate\.csv"):
        gate_figure(run, tmp_path / "gate.png")
    assert not list(tmp_path.glob("*figure*"))


def test_plotting_imports_no_torch():
    code = "import sys, mops_fl.run.plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
