"""Axes: values lie in order and ticks are round, whatever the values are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mops_fl.report.axes import MOST_TICKS, Axis


@given(
    st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=20),
    st.booleans(),
)
def test_values_lie_on_the_drawing_in_their_order(values, may_log):
    axis = Axis.over(values, 200.0, 10.0, may_log=may_log)
    places = [axis.place(value) for value in sorted(values)]
    assert all(10.0 <= place <= 200.0 for place in places)
    assert places == sorted(places, reverse=True)
    ticks = axis.ticks()
    assert len(ticks) <= MOST_TICKS + 1
    assert all(10.0 <= tick.at <= 200.0 for tick in ticks)


def test_ticks_are_round():
    def texts(values, *, whole=False):
        return [tick.text for tick in Axis.over(values, 0, 100, may_log=True).ticks(whole=whole)]

    assert texts([0, 4], whole=True) == ["0", "1", "2", "3", "4"]
    assert texts([20, 500]) == ["20", "50", "100", "200", "500"]
    assert texts([0.97, 0.99])[0] == "0.97"
    assert texts([1, 1e6])[-1] == "1e6"


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf], [3.0], [0.0], [-2.0, -2.0]])
def test_values_that_have_no_extent(values):
    axis = Axis.over(values, 0.0, 100.0, may_log=True)
    assert axis.low < axis.high
    assert axis.ticks()
