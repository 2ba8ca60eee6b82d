"""Figures of run folders, from result files only: plotting never trains and never loads a model."""

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from mops_fl.errors import RunError
from mops_fl.pictures import fitting, lay_out, save, text_width
from mops_fl.run.results import Replicates, Run, usual_machine
from mops_fl.run.spread import deviation

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":")
"""One after another for each turn through the colours."""
DPI = 100
POINTS_PER_PIXEL = 72 / DPI
LOG_FROM = 4.0
"""The y axis is logarithmic from this ratio between the largest and the smallest value on."""
MARKS_PER_INCH = 3.5
"""Of rounds, those that have a marker and a bar."""
LABEL_HEIGHT = 10.0
"""Points between the values at the ends of curves."""
NUMBERED = (30, 16)
"""Tasks and experts up to which cells of a gate's figure are wide enough for their numbers."""


def perplexity_figure(runs: Sequence[Path], path: Path, per_task: bool = False) -> None:
    """Draw the perplexity per round of one or more run folders, overlaid.

    Bars are one standard error of the mean loss over clients (`Run.standard_error`): what another
    draw of clients would change. They say nothing of other seeds.

    With `per_task` there is one panel for each task, all on the same axes.

    Raises:
        RunError: a run folder cannot be read, there is nothing to draw, or `path` cannot be
            written.
    """
    read = [Run.read(Path(folder)) for folder in runs]
    replicates_figure([Replicates(run.label, (run,)) for run in read], path, per_task)


def replicates_figure(groups: Sequence[Replicates], path: Path, per_task: bool = False) -> None:
    """Draw the same for configurations: of several seeds the mean, and a band around it.

    The band is one sample standard deviation of the perplexity over seeds; a configuration of one
    seed has bars, as in `perplexity_figure`.

    Raises:
        RunError: there is nothing to draw, or `path` cannot be written.
    """
    if not groups:
        raise RunError("there is no run to plot")
    tasks: list[str | None] = [None]
    if per_task:
        names = (task for group in groups for run in group.runs for task in run.tasks)
        tasks = [*dict.fromkeys(names)]
    if not tasks:
        raise RunError("there is no task to plot")
    columns = min(len(tasks), max(4, math.ceil(math.sqrt(len(tasks)))))
    rows = math.ceil(len(tasks) / columns)
    width, height = (max(2.4 * columns + 0.8, 4.0), 1.9 * rows + 0.8) if per_task else (6.4, 3.8)
    labels = [fitting(group.label, width - 0.8, 9) for group in groups]
    beside, legend = _beside(labels, width)
    figure = Figure(figsize=(width, height + legend), layout="constrained", dpi=DPI)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, task in zip(panels, tasks, strict=False):
        _draw_curves(panel, groups, task, _most_marks(width / columns))
        if task is not None:
            title = fitting(_spaced(task), width / columns - 0.4, 9)
            panel.set_title(title, fontsize=9, loc="left")
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(tasks) - columns) : len(tasks)]:
        panel.tick_params(labelbottom=True)
    _scale(panels[0], [group.curves(task).mean(axis=1) for group in groups for task in tasks])
    figure.supxlabel(f"round\n{_caption(groups, width)}".strip(), fontsize=9)
    middle = 0.5 * height / (height + legend)
    figure.supylabel("perplexity on answer tokens", fontsize=10, y=middle)
    _explain(figure, panels[0], labels, beside)
    if not per_task:
        _label_ends(figure, panels[0], [group.curves().mean(axis=1) for group in groups])
    save(figure, Path(path))


def cost_figure(groups: Sequence[Replicates], path: Path) -> None:
    """Draw perplexity against rounds, against bytes and against seconds of training.

    Means over seeds, of the seconds over those on the machine of most runs; what trains nothing is
    a horizontal line.

    Raises:
        RunError: there is nothing to draw, or `path` cannot be written.
    """
    if not groups:
        raise RunError("there is no run to plot")
    width = 9.6
    labels = [fitting(group.label, width - 0.8, 9) for group in groups]
    beside, legend = _beside(labels, width)
    figure = Figure(figsize=(width, 3.2 + legend), layout="constrained", dpi=DPI)
    panels = figure.subplots(1, 3, sharey=True, gridspec_kw={"wspace": 0.06})
    means = [group.curves().mean(axis=1) for group in groups]
    runs = [run for group in groups for run in group.runs]
    machine = usual_machine(runs)
    where = f"\non {machine}" if len({run.machine for run in runs}) > 1 else ""
    for index, (group, series) in enumerate(zip(groups, means, strict=True)):
        spent = group.costs(machine).reindex(series.index)
        for panel, x in zip(
            panels, (series.index, spent["bytes"] / 1e6, spent["seconds"]), strict=True
        ):
            _draw_line(panel, index, x, series, _most_marks(width / len(panels)))
    for panel, what in zip(
        panels,
        ("round", "MB both ways, all clients", f"seconds of training{where}"),
        strict=True,
    ):
        _dress(panel)
        panel.set_xlabel(what, fontsize=9)
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _scale(panels[0], means)
    panels[0].set_ylabel("perplexity on answer tokens", fontsize=9)
    _explain(figure, panels[0], labels, beside)
    save(figure, Path(path))


def _beside(labels: Sequence[str], width: float) -> tuple[int, float]:
    """How many entries of a legend fit beside each other, and its height; in inches."""
    fit = int(width / (0.75 + max(text_width(label, 9) for label in labels)))
    beside = max(1, min(fit, len(labels)))
    return beside, 0.19 * math.ceil(len(labels) / beside)


def _explain(figure: Figure, panel: Axes, labels: Sequence[str], beside: int) -> None:
    figure.legend(
        panel.lines, labels, loc="outside upper left", ncols=beside, fontsize=9, frameon=False
    )


def _draw_line(panel: Axes, index: int, x: Any, y: pd.Series, most: int) -> None:
    if len(y) == 1:
        panel.axhline(float(y.iloc[0]), **{**_look(index), "marker": ""})
    else:
        panel.plot(x, y, markevery=_marked(len(y), most), **_look(index))


def _most_marks(width: float) -> int:
    """How many rounds of a panel have a marker; width in inches."""
    return max(2, int(MARKS_PER_INCH * width))


def _marked(rounds: int, most: int) -> list[int]:
    """At most so many of the rounds, evenly, the first and the last among them."""
    return sorted({round(each) for each in np.linspace(0, rounds - 1, min(rounds, most))})


def _look(index: int) -> dict[str, Any]:
    """Of the line of one of several configurations."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linestyle": LINES[index // len(COLOURS) % len(LINES)],
        "linewidth": 1.5,
    }


def _dress(panel: Axes) -> None:
    panel.grid(axis="y", color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.03)
    panel.tick_params(labelsize=9)


def gate_figure(run: Run, path: Path) -> None:
    """Draw the mean gate weight of each expert for each task, first and last evaluated round.

    Raises:
        RunError: it has no gate weights, or `path` cannot be written.
    """
    shown = sorted({run.gate["round"].min(), run.gate["round"].max()})
    drawn = run.gate[run.gate["round"].isin(shown)]
    order, columns = drawn["task"].unique(), sorted(drawn["expert"].unique())
    weights = {
        number: rows.pivot(index="task", columns="expert", values="weight")
        .reindex(index=order, columns=columns)
        .to_numpy()
        for number, rows in drawn.groupby("round")
    }
    top = float(drawn["weight"].max())
    numbered = len(order) <= NUMBERED[0] and len(columns) <= NUMBERED[1]
    cell, size = ((0.52, 0.36), 9) if numbered else ((min(0.2, 10 / len(columns)), 0.15), 7)
    width, tall = 1.7 + len(shown) * max(cell[0] * len(columns), 2.2), cell[1] * len(order)
    figure = Figure(figsize=(width, 1.3 + tall), layout="constrained", dpi=DPI)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, number in zip(panels, shown, strict=True):
        image = panel.imshow(weights[number], cmap="Blues", vmin=0, vmax=top, aspect="auto")
        if numbered:
            _annotate(panel, weights[number], top)
        title = "before training" if number == 0 else f"after round {number}"
        panel.set_title(title, fontsize=10, loc="left")
        step = math.ceil(0.2 / cell[0])
        panel.set_xticks(range(0, len(columns), step), [str(each) for each in columns[::step]])
        panel.set_yticks(range(len(order)), [fitting(_spaced(task), 2, size) for task in order])
        panel.set_xlabel("expert", fontsize=10)
        panel.tick_params(length=0, labelsize=size)
        panel.spines[:].set_visible(False)
    share = min(1.0, 3 / tall)
    bar = figure.colorbar(
        image,
        ax=list(panels),
        label="mean gate weight" if tall > 1 else "weight",
        shrink=share,
        aspect=max(4.0, share * tall / 0.15),
        anchor=(0, 1),
        pad=0.02,
    )
    bar.outline.set_visible(False)
    figure.suptitle(fitting(run.label, width - 0.2, 10), fontsize=10, x=0.01, ha="left")
    save(figure, path)


def _draw_curves(panel: Axes, groups: Sequence[Replicates], task: str | None, most: int) -> None:
    """Curves with bars or bands; at most so many rounds of each have a marker and a bar."""
    for index, group in enumerate(groups):
        look, curves = _look(index), group.curves(task)
        series = curves.mean(axis=1)
        marked = _marked(len(series), most)
        panel.plot(series.index, series, markevery=marked, **look)
        if len(group.runs) == 1:
            # beside each other: those of several runs at one round would hide each other
            beside = min(2.0, 12 / len(groups)) * (index - (len(groups) - 1) / 2)
            shift = ScaledTranslation(beside / 72, 0, panel.figure.dpi_scale_trans)
            low, high = _bars(group.runs[0], task, series.iloc[marked])
            bars = panel.vlines(series.index[marked], low, high, look["color"], linewidth=1.0)
            bars.set(zorder=1.5, clip_on=False, transform=panel.transData + shift)
        if len(partial := series[series.index.isin(group.shares(task).index)]):
            shape = {"marker": look["marker"], "edgecolors": look["color"], "facecolors": "white"}
            panel.scatter(partial.index, partial, s=25, zorder=3, **shape)
        if len(group.runs) > 1:
            sd = curves.apply(deviation, axis=1)
            # no perplexity is below one
            low, high = (series - sd).clip(lower=1), series + sd
            panel.fill_between(series.index, low, high, color=look["color"], alpha=0.2, linewidth=0)
    _dress(panel)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _bars(run: Run, task: str | None, series: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Where perplexity is one standard error of the loss below and above."""
    spread = np.exp(run.standard_error(task).reindex(series.index).to_numpy(float))
    return series / spread, series * spread


def _caption(groups: Sequence[Replicates], width: float) -> str:
    """What is drawn, in lines of `width` inches at most that break between its parts."""
    parts = (part.replace(" ", "\N{NO-BREAK SPACE}") for part in _what_is_drawn(groups))
    lines = textwrap.wrap("; ".join(parts), int(width / 0.07))
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _what_is_drawn(groups: Sequence[Replicates]) -> list[str]:
    """What bars and bands show, and how much the runs were evaluated on."""
    runs = [run for group in groups for run in group.runs]
    sizes = {len(group.runs) for group in groups}
    parts = []
    if sizes != {1}:
        seeds = " or ".join(map(str, sorted(sizes - {1})))
        parts.append(f"mean over {seeds} seeds, bands: ± 1 standard deviation")
    if 1 in sizes and any(len(run.evaluation) for run in runs):
        parts.append("bars: ± 1 standard error over clients")
    held_out = {run.held_out for run in runs}
    if parts and len(held_out) == 1:
        ((clients, rows),) = held_out
        parts.append(f"{rows:,} held-out rows of {clients:,} client{'s' * (clients != 1)}")
    if any(len(group.shares()) for group in groups):
        parts.append("hollow: not on all held-out rows")
    return parts


def _scale(panel: Axes, curves: Sequence[pd.Series]) -> None:
    finite = [y for curve in curves for y in curve if math.isfinite(y) and y > 0]
    if finite and max(finite) / min(finite) >= LOG_FROM:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,g}"))


def _label_ends(figure: Figure, panel: Axes, curves: Sequence[pd.Series]) -> None:
    """Write each curve's last value beside it, apart from each other where curves meet.

    More of them than there is room for are left out.
    """
    lay_out(figure)
    ends = sorted(
        (float(curve.iloc[-1]), float(curve.index[-1]), colour)
        for curve, colour in zip(curves, itertools.cycle(COLOURS), strict=False)
        if math.isfinite(curve.iloc[-1])
    )
    if len(ends) * LABEL_HEIGHT > panel.bbox.height * POINTS_PER_PIXEL:
        return
    wanted = [panel.transData.transform((x, y))[1] * POINTS_PER_PIXEL for y, x, _ in ends]
    places = _apart(wanted, panel.bbox.y0 * POINTS_PER_PIXEL)
    for (y, x, colour), height, place in zip(ends, wanted, places, strict=True):
        panel.annotate(
            f"{y:,.1f}",
            (x, y),
            xytext=(7, place - height),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def _apart(wanted: Sequence[float], lowest: float) -> list[float]:
    """The places nearest to those wanted that are `LABEL_HEIGHT` apart: isotonic regression.

    Args:
        wanted: points, rising.
        lowest: points, below which there is no place.
    """
    blocks: list[tuple[float, int]] = []
    for index, height in enumerate(wanted):
        mean, size = height - index * LABEL_HEIGHT, 1
        while blocks and blocks[-1][0] >= mean:
            other, more = blocks.pop()
            mean, size = (mean * size + other * more) / (size + more), size + more
        blocks.append((mean, size))
    means = [mean for mean, size in blocks for _ in range(size)]
    return [max(mean, lowest) + index * LABEL_HEIGHT for index, mean in enumerate(means)]


def _annotate(panel: Axes, weights: np.ndarray, top: float) -> None:
    for (row, column), weight in np.ndenumerate(weights):
        if math.isnan(weight):
            continue
        panel.text(
            column,
            row,
            f"{weight:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if weight > 0.6 * top else "0.2",
        )


def _spaced(task: str) -> str:
    return task.replace("_", " ")
