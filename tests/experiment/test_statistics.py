"""What few seeds can show, against scipy-free oracles."""

import itertools
import math

import numpy as np
import pytest

from mops_fl.experiment.statistics import bootstrap, gain, least_p, reduction, sign_flip


def test_gain_is_the_papers_and_reduction_the_plain_one():
    assert gain(143.02, 84.10) == pytest.approx(0.70, abs=0.005)
    assert reduction(143.02, 84.10) == pytest.approx(0.41, abs=0.005)


@pytest.mark.parametrize("seed", range(5))
def test_sign_flip_counts_all_ways(seed):
    values = np.random.default_rng(seed).normal(0.3, 1, size=6)
    ways = [
        sum(v * s for v, s in zip(values, each, strict=True))
        for each in itertools.product((-1, 1), repeat=6)
    ]
    expected = sum(abs(way) >= abs(values.sum()) - 1e-12 for way in ways) / 64
    assert sign_flip(values) == pytest.approx(expected)


@pytest.mark.parametrize(("seeds", "least"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625)])
def test_no_p_is_below_what_the_seeds_can_show(seeds, least):
    assert least_p(seeds) == least
    assert sign_flip([-0.1 - 0.01 * n for n in range(seeds)]) == least


def test_sign_flip_of_many_is_drawn_and_of_nothing_unknown():
    values = np.random.default_rng(1).normal(0.2, 1, size=14)
    drawn = sign_flip([*values, 0.0, 0.0, 0.0])
    assert drawn == pytest.approx(sign_flip(values), abs=0.01)
    assert math.isnan(sign_flip([]))
    assert math.isnan(sign_flip([1.0, math.nan]))


def test_the_bootstrap_holds_the_difference_and_shrinks_with_clients():
    draw = np.random.default_rng(0)

    def interval(clients):
        tokens = draw.integers(20, 60, size=clients).astype(float)
        base = draw.normal(2, 0.3, size=clients)
        own = np.stack([(base - 0.1 + draw.normal(0, 0.05, clients)) * tokens, tokens], 1)
        return bootstrap([own], [np.stack([base * tokens, tokens], 1)])

    few, many = interval(10), interval(1000)
    assert few[0] < -0.1 < few[1]
    assert many[0] < -0.1 < many[1] < 0
    assert many[1] - many[0] < (few[1] - few[0]) / 3
