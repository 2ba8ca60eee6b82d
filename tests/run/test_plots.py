"""Figures: drawn whole or not at all, from any run folders."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image
from synthetic import LABELS, write_run, write_table

from mops_fl.errors import RunError
from mops_fl.pictures import save
from mops_fl.run.figures import draw_figures
from mops_fl.run.plots import gate_figure, perplexity_figure, replicates_figure
from mops_fl.run.results import Replicates, Run


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
    text[1] = "0,all,90000.0,100,inf,1.0"
    (run / "rounds.csv").write_text("\n".join(text) + "\n")
    perplexity_figure([run], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize("rounds", [0, 4])
def test_gate_before_and_after(tmp_path, rounds):
    gate_figure(Run.read(write_run(tmp_path / "run", rounds=rounds)), tmp_path / "gate.png")
    assert imread(tmp_path / "gate.png").std() > 0.05


def test_any_label_is_drawn(tmp_path):
    run = write_run(tmp_path / "_$x^2$ [bold] 日本語", tasks=LABELS)
    assert draw_figures(run) == []
    assert {file.name for file in run.glob("*.png")} == {"perplexity.png", "gate.png"}
    perplexity_figure([run], tmp_path / "tasks.png", per_task=True)


def test_text_of_others_is_no_formula_and_no_label_is_left_out(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("mops_fl.run.plots.save", lambda figure, _: shown.append(figure))
    run = write_run(tmp_path / "_$x^2$", tasks=["$a_1$", "_b"])
    perplexity_figure([run], tmp_path / "figure.png", per_task=True)
    gate_figure(Run.read(run), tmp_path / "gate.png")
    (legend,) = shown[0].legends
    assert [text.get_text() for text in legend.texts] == [r"_\$x^2\$ (mops)"]
    assert shown[0].axes[0].get_title("left") == r"\$a 1\$"
    ticks = [text.get_text() for text in shown[1].axes[0].get_yticklabels()]
    assert ticks == [r"\$a 1\$", "b"]


def test_a_task_without_a_reply_leaves_a_blank(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("mops_fl.run.plots.save", lambda figure, _: shown.append(figure))
    run = write_run(tmp_path / "run", rounds=2)
    full = [(n, t, e, 0.5) for n in range(3) for t in ("sort", "count") for e in range(2)]
    for number, blanks in ((0, 2), (1, 0), (2, 2)):
        rows = [row for row in full if row[:2] != (number, "sort")]
        write_table(run / "gate.csv", rows)
        gate_figure(Run.read(run), tmp_path / "gate.png")
        first, last, _ = shown.pop().axes
        missing = np.isnan([panel.images[0].get_array().filled(np.nan) for panel in (first, last)])
        assert missing.sum() == blanks
        assert len(first.texts) + len(last.texts) == 8 - blanks


def test_what_cannot_be_drawn_is_a_warning(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "rounds.csv").unlink()
    (warning,) = draw_figures(run)
    assert warning.startswith("no figure of perplexity: ")
    assert "has no rounds.csv" in warning
    assert (run / "gate.png").is_file()
    (run / "gate.csv").write_text("nonsense")
    assert len(draw_figures(run)) == 2
    assert len(draw_figures(tmp_path / "nowhere")) == 1


def test_very_many_tasks_are_drawn_coarser(tmp_path):
    figure = Figure(figsize=(1, 400))
    save(figure, tmp_path / "long.png")
    with Image.open(tmp_path / "long.png") as picture:
        assert picture.size == (75, 30_000)


def test_what_cannot_be_drawn(tmp_path):
    run = write_run(tmp_path / "run", method="fedprompt")
    with pytest.raises(RunError, match="no run to plot"):
        perplexity_figure([], tmp_path / "figure.png")
    with pytest.raises(RunError, match="no task to plot"):
        perplexity_figure([write_run(tmp_path / "x", tasks=())], tmp_path / "figure.png", True)
    with pytest.raises(RunError, match="its ending must be one of"):
        perplexity_figure([run], tmp_path / "figure.xyz")
    with pytest.raises(RunError, match=r"has no gate\.csv"):
        gate_figure(Run.read(run), tmp_path / "gate.png")
    assert not list(tmp_path.glob("*figure*"))


def test_plotting_imports_no_torch():
    code = "import sys, mops_fl.run.plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def seeds(folder, ends, **options):
    folders = [
        write_run(folder / str(seed), end=end, config={"seed": seed}, **options)
        for seed, end in enumerate(ends)
    ]
    return Replicates(folder.name, tuple(map(Run.read, folders)))


def test_seeds_are_a_mean_and_a_band(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("mops_fl.run.plots.save", lambda figure, _: shown.append(figure))
    groups = [seeds(tmp_path / "one", [20]), seeds(tmp_path / "three", [10, 30, 35])]
    replicates_figure(groups, tmp_path / "figure.png")
    panel = shown[0].axes[0]
    (band,) = (each for each in panel.collections if each.get_paths()[0].vertices.size > 8)
    curves = groups[1].curves()
    last = band.get_paths()[0].vertices
    last = last[last[:, 0] == curves.index[-1], 1]
    mean, sd = curves.iloc[-1].mean(), curves.iloc[-1].std()
    assert (last.min(), last.max()) == pytest.approx((mean - sd, mean + sd))
    assert panel.lines[-1].get_ydata()[-1] == pytest.approx(mean)
    caption = shown[0].get_supxlabel()
    assert "mean over 3 seeds, bands: ± 1 standard deviation" in caption
    assert "bars: ± 1 standard error over clients" in caption
    replicates_figure(groups[1:], tmp_path / "figure.png")
    assert "bars" not in shown[1].get_supxlabel()


def test_no_band_goes_below_a_perplexity_of_one(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("mops_fl.run.plots.save", lambda figure, _: shown.append(figure))
    replicates_figure([seeds(tmp_path / "wide", [2, 400])], tmp_path / "figure.png")
    (band,) = shown[0].axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].min() == 1


def test_an_infinite_perplexity_of_one_seed_leaves_a_gap(tmp_path):
    group = seeds(tmp_path / "x", [20, 30])
    text = (group.runs[0].folder / "rounds.csv").read_text().splitlines()
    text[1] = "0,all,90000.0,100,inf,1.0"
    (group.runs[0].folder / "rounds.csv").write_text("\n".join(text) + "\n")
    replicates_figure([group], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file()


def test_the_eighth_curve_is_not_the_first(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("mops_fl.run.plots.save", lambda figure, _: shown.append(figure))
    runs = [write_run(tmp_path / str(n), rounds=2) for n in range(9)]
    perplexity_figure(runs, tmp_path / "figure.png")
    styles = {
        (line.get_color(), line.get_linestyle())
        for line in shown[0].axes[0].lines
        if line.get_linestyle() != "None"
    }
    assert len(styles) == 9


def test_rounds_on_fewer_tokens_are_hollow(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("mops_fl.run.plots.save", lambda figure, _: shown.append(figure))
    run = write_run(tmp_path / "run")
    text = (run / "rounds.csv").read_text().splitlines()
    text[4] = text[4].removesuffix("1.0") + "0.9"
    assert text[4].startswith("1,all,")
    perplexity_figure([run], tmp_path / "figure.png")
    (run / "rounds.csv").write_text("\n".join(text) + "\n")
    perplexity_figure([run], tmp_path / "figure.png")
    whole, partial = (figure.axes[0].collections for figure in shown)
    assert len(partial) == len(whole) + 1
    assert partial[-1].get_offsets()[:, 0].tolist() == [1]
    captions = ["hollow: not on all held-out rows" in f.get_supxlabel() for f in shown]
    assert captions == [False, True]
