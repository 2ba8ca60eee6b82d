"""Figures that can be shown to others: nothing cut off, nothing on top of something else."""

import itertools

import matplotlib.text
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from synthetic import write_run, write_table

from mops_fl.pictures import lay_out
from mops_fl.run.plots import (
    LABEL_HEIGHT,
    _apart,
    cost_figure,
    gate_figure,
    perplexity_figure,
    replicates_figure,
)
from mops_fl.run.results import Replicates, Run

NAMES = ("mops", "lora rank 16", "a" * 80, "日本語 $x^2$", "[bold]red :smile:", "_x_" * 9, "W" * 60)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, each laid out as it is saved."""
    shown = []

    def keep(figure, path):
        lay_out(figure)
        shown.append(figure)

    monkeypatch.setattr("mops_fl.run.plots.save", keep)
    return shown


def tasks(count: int) -> list[str]:
    return [f"task{number:03d}_answer_generation_from_a_passage" for number in range(count)]


def runs(folder, count: int, rounds: int, names: list[str]):
    ends = [20 + 0.5 * number for number in range(count)]
    pairs = zip(ends, itertools.cycle(NAMES), strict=False)
    return [
        write_run(
            folder / f"{number}" / name, method="x", rounds=rounds, start=9e4, end=end, tasks=names
        )
        for number, (end, name) in enumerate(pairs)
    ]


def texts(figure) -> list[matplotlib.text.Text]:
    """Those that are seen."""
    unseen = [label for panel in figure.axes for axis in axes_of(panel) for label in beyond(axis)]
    found = figure.findobj(matplotlib.text.Text)
    return [each for each in found if each.get_text().strip() and each not in unseen]


def axes_of(panel) -> tuple:
    return panel.xaxis, panel.yaxis


def beyond(axis) -> list[matplotlib.text.Text]:
    """Labels of ticks that are not drawn: of a hidden panel, or out of view."""
    low, high = sorted(axis.get_view_interval())
    ticks = axis.get_major_ticks()
    hidden = not axis.axes.axison
    out = [each for each in ticks if hidden or not low <= each.get_loc() <= high]
    return [label for each in out for label in (each.label1, each.label2)]


def tick_labels(panel) -> list[matplotlib.text.Text]:
    """Those along the x axis that are seen."""
    labels = panel.get_xticklabels()
    return [each for each in labels if each.get_text() and each not in beyond(panel.xaxis)]


def boxes(some) -> np.ndarray:
    """[number, 4]: left, bottom, right, top in pixels."""
    return np.array([each.get_window_extent().extents for each in some])


def check_inside(figure) -> None:
    shown = texts(figure)
    left, bottom, right, top = boxes(shown).T
    outside = (left < 0) | (bottom < 0) | (right > figure.bbox.width) | (top > figure.bbox.height)
    assert not [text.get_text() for text, out in zip(shown, outside, strict=True) if out]


def check_apart(some) -> None:
    """No two of these cover each other."""
    for one, other in itertools.combinations(boxes(some), 2):
        beside = one[2] <= other[0] or other[2] <= one[0]
        above = one[3] <= other[1] or other[3] <= one[1]
        assert beside or above


@pytest.mark.parametrize("count", [1, 2, 6, 12])
@pytest.mark.parametrize("rounds", [0, 2, 100])
def test_no_text_of_a_perplexity_figure_is_cut_off(tmp_path, drawn, count, rounds):
    perplexity_figure(runs(tmp_path, count, rounds, tasks(2)), tmp_path / "figure.png")
    (figure,) = drawn
    check_inside(figure)
    panel = figure.axes[0]
    assert len(panel.texts) == count
    check_apart(panel.texts)
    check_apart(tick_labels(panel))


@pytest.mark.parametrize("names", [1, 3, pytest.param(60, marks=pytest.mark.slow)])
def test_no_text_of_a_figure_by_task_is_cut_off(tmp_path, drawn, names):
    folders = runs(tmp_path, 2, 4, tasks(names))
    perplexity_figure(folders, tmp_path / "figure.png", per_task=True)
    (figure,) = drawn
    check_inside(figure)
    titles = [text for text in texts(figure) if text.get_text().startswith("task")]
    assert len(titles) == names
    check_apart(titles)
    assert figure.bbox.height < 1.2 * figure.bbox.width


def test_a_long_caption_has_several_lines(tmp_path, drawn):
    folders = [write_run(tmp_path / f"{n}", end=20 + n, config={"seed": n}) for n in range(3)]
    read = [Run.read(run) for run in folders]
    for run in folders[:2]:
        text = (run / "rounds.csv").read_text()
        (run / "rounds.csv").write_text(text.replace("1.0\n", "0.9\n", 1))
    groups = [Replicates("two", tuple(read[:2])), Replicates("one", (read[2],))]
    replicates_figure(groups, tmp_path / "figure.png", per_task=True)
    check_inside(drawn[0])
    assert drawn[0].get_supxlabel().count("\n") > 1


@pytest.mark.parametrize("count", [1, 6])
def test_no_text_of_a_cost_figure_is_cut_off(tmp_path, drawn, count):
    read = [Run.read(run) for run in runs(tmp_path, count, 100, tasks(2))]
    cost_figure([Replicates(run.label, (run,)) for run in read], tmp_path / "figure.png")
    (figure,) = drawn
    check_inside(figure)
    check_apart([label for panel in figure.axes for label in tick_labels(panel)])


@pytest.mark.parametrize(("names", "experts"), [(1, 2), (3, 7), (30, 16), (60, 20), (8, 120)])
def test_no_text_of_a_gate_is_cut_off_or_covers_another(tmp_path, drawn, names, experts):
    run = write_run(tmp_path / ("A" * 80), tasks=tasks(names))
    rows = [(k, t, e, 1 / experts) for k in (0, 4) for t in tasks(names) for e in range(experts)]
    write_table(run / "gate.csv", rows)
    gate_figure(Run.read(run), tmp_path / "gate.png")
    (figure,) = drawn
    check_inside(figure)
    first, _, bar = figure.axes
    check_apart(first.get_xticklabels())
    check_apart(first.get_yticklabels())
    check_apart(first.texts[: 2 * experts])
    assert figure.bbox.width / figure.dpi < 25
    # a scale is no panel
    assert bar.bbox.height / figure.dpi < 4
    assert bar.bbox.width / figure.dpi < 0.3


@pytest.mark.parametrize("rounds", [2, 100])
@pytest.mark.parametrize("per_task", [False, True])
def test_bars_of_different_runs_do_not_hide_each_other(tmp_path, drawn, rounds, per_task):
    folders = runs(tmp_path, 6, rounds, tasks(3))
    perplexity_figure(folders, tmp_path / "figure.png", per_task)
    (figure,) = drawn
    panel = figure.axes[0]
    bars = [each for each in panel.collections if isinstance(each, LineCollection)]
    places = [
        bar.get_transform().transform(path.vertices)[0, 0]
        for bar in bars
        for path in bar.get_paths()
    ]
    assert len(bars) == 6
    assert np.diff(sorted(places)).min() * 72 / figure.dpi > 1


def test_places_of_labels_are_the_nearest_that_are_apart():
    assert _apart([0, 50, 100], -100) == [0, 50, 100]
    close = _apart([50, 51, 52], 0)
    assert np.diff(close).tolist() == [LABEL_HEIGHT] * 2
    assert np.mean(close) == pytest.approx(51)
    assert _apart([1, 1, 1], 0)[0] == 0
    assert _apart([], 0) == []
