"""What a few seeds can show."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mops_fl.seeding import numpy_generator

_MOST = 16
"""Seeds up to which all signs are tried: 65,536 ways."""
_DRAWS = 2000


@dataclass(frozen=True)
class Paired:
    """Differences of one entry to another, a pair a seed."""

    mean: float
    """Of the differences in log-perplexity, nats a token; below 0 where the entry is better."""
    low: float
    """2.5 % of the mean difference over resampled clients (bootstrap)."""
    high: float
    """97.5 %."""
    p: float
    """Of the exact two-sided sign-flip test over seeds."""
    least_p: float
    """The smallest p that so many seeds can give."""
    seeds: int


def sign_flip(differences: Sequence[float]) -> float:
    """P of the two-sided sign-flip test (Fisher, 1935): the share of all ways to choose the signs
    whose mean is at least as far from 0 as the mean that was seen.

    It is exact for up to 16 differences; of more, 65,536 ways are drawn. NaN where one of them is
    not finite, or there is none.
    """
    values = np.asarray(differences, float)
    if not len(values) or not np.isfinite(values).all():
        return math.nan
    if len(values) <= _MOST:
        signs = np.array([*itertools.product((1.0, -1.0), repeat=len(values))])
    else:
        draw = numpy_generator(0, "sign-flip")
        signs = draw.choice([1.0, -1.0], size=(2**_MOST, len(values)))
        signs[0] = 1.0
    means = np.abs(signs @ values)
    # what differs by rounding only is as far
    return float((means >= abs(values.sum()) * (1 - 1e-12)).mean())


def least_p(seeds: int) -> float:
    """The smallest p that a two-sided sign-flip test can give: all signs alike."""
    return min(1.0, 2.0 ** (1 - seeds))


def bootstrap(
    losses: Sequence[np.ndarray], others: Sequence[np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """2.5 and 97.5 % of the mean difference in loss, clients of each seed resampled.

    Args:
        losses: for each seed ``[clients, 2]``, sums of nll and tokens.
        others: the same of what they are compared with, clients in the same order.
        seed: of the draws.
    """
    draw = numpy_generator(seed, "bootstrap")
    means = np.zeros(_DRAWS)
    for own, other in zip(losses, others, strict=True):
        picks = draw.integers(len(own), size=(_DRAWS, len(own)))
        ours, theirs = own[picks].sum(1), other[picks].sum(1)
        means += ours[:, 0] / ours[:, 1] - theirs[:, 0] / theirs[:, 1]
    low, high = np.quantile(means / len(losses), (0.025, 0.975))
    return float(low), float(high)


def gain(baseline: float, own: float) -> float:
    """The paper's "gain": by how much a perplexity's baseline is higher, relative to the perplexity
    (Dun et al., Table 3: 143.02 against 84.10 is 70 %).
    """
    return (baseline - own) / own


def reduction(baseline: float, own: float) -> float:
    """By how much a perplexity is lower, relative to its baseline: 41 % there."""
    return (baseline - own) / baseline
