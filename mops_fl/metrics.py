"""The unit of every loss in this project: (sum of negative log-likelihood, answer tokens)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

TOTAL = "all"
"""The name under which the sum over tasks is written."""


LARGEST_LOSS = 1e4
"""Nats of an answer token at most; stands for a loss that is not a number, too."""


@dataclass(frozen=True)
class Tally:
    """A sum of negative log-likelihoods in nats, over a number of answer tokens."""

    nll: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.nll + other.nll, self.tokens + other.tokens)

    @property
    def loss(self) -> float:
        """Nats a token; NaN without tokens."""
        return self.nll / self.tokens if self.tokens else math.nan

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
    """Sums over a number of examples of what a gate gives to each of E experts."""

    weights: tuple[float, ...]
    """Of gate weights, E."""
    load: tuple[int, ...]
    """Examples that give an expert their largest weight, E."""
    entropy: float
    """Of the entropies of gate weights, in nats: ln E at most for each example."""
    examples: int

    @classmethod
    def of(cls, weights: Sequence[float]) -> "GateSum":
        """One example's, from gate weights that sum to 1."""
        best = max(range(len(weights)), key=weights.__getitem__)
        # rounded weights may be a little more than 1
        entropy = max(-sum(weight * math.log(weight) for weight in weights if weight > 0), 0.0)
        load = tuple(int(expert == best) for expert in range(len(weights)))
        return cls(tuple(weights), load, entropy, 1)

    def __add__(self, other: "GateSum") -> "GateSum":
        weights = (a + b for a, b in zip(self.weights, other.weights, strict=True))
        load = (a + b for a, b in zip(self.load, other.load, strict=True))
        entropy, examples = self.entropy + other.entropy, self.examples + other.examples
        return GateSum(tuple(weights), tuple(load), entropy, examples)

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean gate weight of each expert."""
        return tuple(weight / self.examples for weight in self.weights)

    @property
    def mean_load(self) -> tuple[float, ...]:
        """The share of examples that give each expert their largest weight."""
        return tuple(count / self.examples for count in self.load)

    @property
    def mean_entropy(self) -> float:
        """The mean entropy of an example's gate weights, in nats."""
        return self.entropy / self.examples
