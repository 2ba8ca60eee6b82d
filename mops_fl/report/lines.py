"""Charts of lines, laid out: what is left to a template is to write them down as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from mops_fl.report.axes import Axis, Tick
from mops_fl.report.wording import short_number, thinned

COLOURS = 7
"""Looks of lines, by colour and mark, that the style sheet has."""
MOST_POINTS = 120
"""Of a line; more cannot be told apart at its size."""
MOST_SMALL = 40
"""The same of a small chart."""
MOST_MARKS = 12
_LINE_HEIGHT = 12.0
_NEAR = 25.0


@dataclass(frozen=True)
class Curve:
    """What is drawn of one configuration."""

    look: int
    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    """Lower edge of the band or of the bars, a value for each point; empty for none."""
    high: Sequence[float] = ()
    banded: bool = False
    """A band over seeds; else bars over clients."""
    hollow: frozenset[float] = frozenset()
    """The `x` of points that do not stand on all rows."""
    faint: bool = False
    """Dashed: of clients that never train."""


@dataclass(frozen=True)
class Mark:
    """A point that is marked."""

    x: float
    y: float
    hollow: bool
    tip: str
    """Shown beside it when it is pointed at; empty for none."""


@dataclass(frozen=True)
class Line:
    """A curve in units of the drawing."""

    look: int
    path: str
    band: str
    bars: str
    marks: Sequence[Mark]
    faint: bool
    end: str = ""
    """The last value, written beside the line."""
    end_at: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Chart:
    """A chart, laid out."""

    title: str
    says: str
    """The same in words, for who does not see it."""
    x_title: str
    y_title: str
    width: float
    height: float
    x: Axis
    y: Axis
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = field(default_factory=tuple)


def chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_title: str,
    y_title: str,
    whole: bool = False,
    small: bool = False,
    ends: bool = False,
    may_log: bool = True,
    x_values: Iterable[float] = (),
    y_values: Iterable[float] = (),
) -> Chart:
    """Lay out curves; a curve of one point is a horizontal line.

    Args:
        curves: of which one at least has a finite value.
        title: what the drawing is called.
        x_title: name and unit of the horizontal axis.
        y_title: name and unit of the vertical axis.
        whole: whether x are whole numbers.
        small: whether it is one of many.
        ends: whether the last values are written.
        may_log: whether the vertical axis may be logarithmic.
        x_values: what the horizontal axis reaches besides.
        y_values: what the vertical axis reaches besides, so that several charts have one.
    """
    width, height = (240.0, 150.0) if small else (360.0, 250.0)
    right = width - (44.0 if ends else 12.0)
    drawn = [_drawable(curve, MOST_SMALL if small else MOST_POINTS) for curve in curves]
    every_x = [x for curve in drawn if len(curve.x) > 1 for x in curve.x] + [*x_values]
    x = _from_edge(Axis.over(every_x or [0.0, 1.0], 44.0, right))
    reached = [v for curve in drawn for v in (*curve.y, *curve.low, *curve.high)]
    bottom, top = (height - 20.0, 8.0) if small else (height - 38.0, 24.0)
    y = Axis.over([*reached, *y_values], bottom, top, may_log=may_log)
    lines = [_line(curve, x, y, small=small) for curve in drawn]
    if ends:
        lines = _with_ends(lines, drawn, right + 7.0, bottom)
    return Chart(
        title=title,
        says=" ".join(_in_words(curve) for curve in drawn[:12]),
        x_title=x_title,
        y_title=y_title,
        width=width,
        height=height,
        x=x,
        y=y,
        x_ticks=x.ticks(whole=whole),
        y_ticks=y.ticks(),
        lines=lines,
    )


def _from_edge(axis: Axis) -> Axis:
    """Rounds, bytes and seconds begin at the edge of the drawing."""
    padding = 0.03 * (axis.high - axis.low)
    low = axis.low if axis.low > 0 or axis.high <= 0 else -padding
    return replace(axis, low=low)


def _drawable(curve: Curve, most: int) -> Curve:
    """Its finite points, `most` at most; bounds only where both are finite."""
    rows = [i for i, (x, y) in enumerate(zip(curve.x, curve.y, strict=True)) if _finite(x, y)]
    rows = thinned(rows, most)
    bounded = len(curve.low) == len(curve.x) == len(curve.high)
    return replace(
        curve,
        x=[float(curve.x[i]) for i in rows],
        y=[float(curve.y[i]) for i in rows],
        low=[_or(curve.low[i], curve.y[i]) for i in rows] if bounded else (),
        high=[_or(curve.high[i], curve.y[i]) for i in rows] if bounded else (),
    )


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def _or(value: float, other: float) -> float:
    return float(value if math.isfinite(value) else other)


def _line(curve: Curve, x: Axis, y: Axis, *, small: bool) -> Line:
    if len(curve.x) == 1:
        height = y.place(curve.y[0])
        flat = f"M{x.start} {height}H{x.end}"
        middle = Mark((x.start + x.end) / 2, height, False, _tip(curve, 0))
        return Line(curve.look, flat, "", "", [middle], curve.faint)
    at = [(x.place(a), y.place(b)) for a, b in zip(curve.x, curve.y, strict=True)]
    shown = thinned(range(len(at)), 2 if small else MOST_MARKS)
    shown = sorted({*shown, *(i for i, a in enumerate(curve.x) if a in curve.hollow)})
    marks = [
        Mark(*at[i], curve.x[i] in curve.hollow, "" if small else _tip(curve, i)) for i in shown
    ]
    band = bars = ""
    if curve.low and curve.banded:
        lower = [(x.place(a), y.place(b)) for a, b in zip(curve.x, curve.low, strict=True)]
        upper = [(x.place(a), y.place(b)) for a, b in zip(curve.x, curve.high, strict=True)]
        band = f"{_path(upper)}L{_path(reversed(lower))[1:]}Z"
    elif curve.low and not small:
        bars = "".join(
            f"M{at[i][0]} {y.place(curve.low[i])}V{y.place(curve.high[i])}" for i in shown
        )
    return Line(curve.look, _path(at), band, bars, marks, curve.faint)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _tip(curve: Curve, index: int) -> str:
    return f"{curve.label}: {short_number(curve.y[index])} at {curve.x[index]:,.4g}"


def _with_ends(
    lines: Sequence[Line], curves: Sequence[Curve], x: float, bottom: float
) -> list[Line]:
    """The last value of each line that reaches the right, apart where lines meet."""
    reach = [
        i
        for i, curve in enumerate(curves)
        if len(curve.x) == 1 or (curve.x and lines[i].marks[-1].x > x - _NEAR)
    ]
    order = sorted(reach, key=lambda i: (lines[i].marks[-1].y, i))
    places: dict[int, float] = {}
    lowest = -math.inf
    for index in order:
        lowest = places[index] = max(lines[index].marks[-1].y, lowest + _LINE_HEIGHT)
    # the last may be pushed below the drawing: all move up by as much
    floor = bottom
    for index in reversed(order):
        places[index] = min(places[index], floor)
        floor = places[index] - _LINE_HEIGHT
    return [
        replace(line, end=short_number(curves[i].y[-1]), end_at=(x, round(places[i] + 4, 1)))
        if i in places
        else line
        for i, line in enumerate(lines)
    ]


def _in_words(curve: Curve) -> str:
    if not curve.y:
        return f"{curve.label}: no value."
    first, last = short_number(curve.y[0]), short_number(curve.y[-1])
    return f"{curve.label}: {first} at first, {last} at last."
