"""The unit of every loss in this project: (sum of negative log-likelihood, answer tokens)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TOTAL = "all"
"""The name under which the sum over tasks is written."""


@dataclass(frozen=True)
class Tally:
    """A sum of negative log-likelihoods in nats, over a number of answer tokens."""

    nll: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.nll + other.nll, self.tokens + other.tokens)

    @property
    def perplexity(self) -> float:
        """``exp(nll / tokens)``; NaN without tokens, infinity where it overflows."""
        if not self.tokens:
            return math.nan
        try:
            return math.exp(self.nll / self.tokens)
        except OverflowError:
            return math.inf


Tallies = Mapping[str, Tally]
"""A tally for each task."""


def total(tallies: Tallies) -> Tally:
    """The sum over tasks."""
    return sum(tallies.values(), Tally())


def merge(parts: Iterable[Tallies]) -> dict[str, Tally]:
    """The sum over clients, task by task, tasks in the order of their names.

    The parts are summed in the order given: give them in one order for one result to the last bit.
    """
    merged: dict[str, Tally] = {}
    for part in parts:
        for task, tally in part.items():
            merged[task] = merged.get(task, Tally()) + tally
    return dict(sorted(merged.items()))


@dataclass(frozen=True)
class GateSum:
    """A sum of gate weights over a number of examples, one weight an expert."""

    weights: tuple[float, ...]
    examples: int

    def __add__(self, other: "GateSum") -> "GateSum":
        summed = (a + b for a, b in zip(self.weights, other.weights, strict=True))
        return GateSum(tuple(summed), self.examples + other.examples)

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean gate weight of each expert."""
        return tuple(weight / self.examples for weight in self.weights)
