"""How the losses of clients lie: the mean hides who loses."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mops_fl.metrics import Tally


@dataclass(frozen=True)
class Group:
    """Some clients, each of which counts once, however much it holds."""

    loss: float
    """Mean over the clients of their losses, nats an answer token."""
    clients: int
    rows: int
    """Held-out rows that the losses stand on."""

    @property
    def perplexity(self) -> float:
        """``exp(loss)``: that of the mean loss, since a mean of perplexities is none."""
        return Tally(self.loss, 1).perplexity


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and both ends of the losses of clients."""

    every: Group
    sd: float
    """Sample standard deviation of the losses, nats an answer token; NaN for one client."""
    worst: Group
    """The tenth of the clients with the highest losses; at least one client."""
    best: Group
    """The tenth with the lowest."""

    @classmethod
    def of(cls, losses: pd.Series, rows: pd.Series) -> "Spread":
        """The spread of `losses`, of which there is one at least.

        Args:
            losses: nats an answer token, by partition.
            rows: held-out rows, by partition.
        """
        ranked = losses.sort_values(kind="stable")
        tenth = math.ceil(len(ranked) / 10)

        def group(some: pd.Series) -> Group:
            held = rows.reindex(some.index, fill_value=0)
            return Group(float(some.mean()), len(some), int(held.sum()))

        ends = {"worst": group(ranked[-tenth:]), "best": group(ranked[:tenth])}
        return cls(every=group(ranked), sd=deviation(ranked), **ends)


def client_losses(table: pd.DataFrame) -> pd.Series:
    """Loss of each client in nats an answer token, by partition; those without tokens are left out.

    Args:
        table: rows of one round, with the columns ``partition``, ``nll`` and ``tokens``.
    """
    sums = table.groupby("partition")[["nll", "tokens"]].sum()
    sums = sums[sums["tokens"] > 0]
    return sums["nll"] / sums["tokens"]


def deviation(values: pd.Series) -> float:
    """Sample standard deviation of the values that are known; NaN for one, and beside infinity."""
    with np.errstate(invalid="ignore"):
        return float(values.std())


def perplexity(table: pd.DataFrame) -> float:
    """Of all rows together; NaN without tokens."""
    return Tally(float(table["nll"].sum()), int(table["tokens"].sum())).perplexity
