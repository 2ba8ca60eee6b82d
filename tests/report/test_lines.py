"""Charts are laid out: bands, bars, gaps and the values at the ends of lines."""

import math
import re
from itertools import pairwise

from mops_fl.report.lines import MOST_POINTS, MOST_SMALL, Curve, chart


def drawn(*curves, **options):
    return chart(curves, title="t", x_title="round", y_title="y", **options)


def points(path):
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.strip("Z")) if pair]


def test_a_curve_of_one_point_is_a_horizontal_line():
    chart = drawn(Curve(0, "a", [0, 1], [5, 9]), Curve(1, "b", [0], [7]), ends=True)
    assert re.fullmatch(r"M[\d.]+ [\d.]+H[\d.]+", chart.lines[1].path)
    assert [line.end for line in chart.lines] == ["9.00", "7.00"]


def test_a_band_reaches_both_bounds():
    curve = Curve(0, "a", [0, 1], [5, 6], low=[4, 5], high=[6, 7], banded=True)
    chart = drawn(curve)
    heights = [y for _, y in points(chart.lines[0].band)]
    assert sorted(heights) == sorted(map(chart.y.place, (4, 5, 6, 7)))
    bars = drawn(Curve(0, "a", [0, 1], [5, 6], low=[4, math.nan], high=[6, math.nan])).lines[0]
    assert not bars.band
    assert bars.bars.count("V") == 2


def test_what_is_not_finite_is_left_out():
    gaps = Curve(0, "a", [0, 1, 2, 3], [math.inf, 5, math.nan, 6])
    chart = drawn(gaps, Curve(1, "b", [0], [math.nan]))
    assert len(points(chart.lines[0].path)) == 2
    assert (chart.lines[1].path, chart.lines[1].marks) == ("M", [])
    assert chart.says == "a: 5.00 at first, 6.00 at last. b: no value."


def test_long_curves_keep_their_ends():
    curve = Curve(0, "a", range(1001), [float(n) for n in range(1001)])
    for small, most in ((False, MOST_POINTS), (True, MOST_SMALL)):
        chart = drawn(curve, small=small, may_log=False)
        found = points(chart.lines[0].path)
        assert len(found) == most
        assert (found[0][0], found[-1][0]) == (chart.x.place(0), chart.x.place(1000))


def test_values_at_the_ends_do_not_overlap():
    curves = [Curve(n, str(n), [0, 1], [9, 5 + n / 1000]) for n in range(6)]
    short = Curve(6, "short", [0, 0.3], [9, 5])
    chart = drawn(*curves, short, ends=True)
    heights = sorted(line.end_at[1] for line in chart.lines[:6])
    assert all(b - a >= 12 for a, b in pairwise(heights))
    assert heights[-1] <= chart.height
    assert chart.lines[6].end == ""


def test_partial_rounds_are_hollow():
    chart = drawn(Curve(0, "a", range(100), [1.0] * 100, hollow=frozenset({37.0})))
    assert sum(mark.hollow for mark in chart.lines[0].marks) == 1
