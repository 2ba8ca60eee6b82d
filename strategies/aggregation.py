"""The rules of `aggregation`: from a round's valid replies to the next round's tensors.

What a rule carries from round to round is its `state`: tensors that the checkpoint of a round
holds beside the averaged ones, so that a resumed run goes on with the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum

from mops_fl.config import AggregationConfig
from mops_fl.wire.records import ARRAYS, PROMPTS, Tensors, norm, to_array_record
from strategies.averaging import weighted_mean


@dataclass(frozen=True)
class Contribution:
    """One client's part in a round."""

    tensors: Tensors
    examples: int
    """Rows that it trains on: its weight."""
    gate: tuple[float, ...] = ()
    """ḡ, the mean gate weight of each expert over its local steps, where it was asked for."""


def by_examples(_round: int, _sent: Tensors, replies: Sequence[Contribution]) -> Tensors:
    """The mean weighted by examples."""
    return weighted_mean([r.tensors for r in replies], [r.examples for r in replies])


Mean = Callable[[int, Tensors, Sequence[Contribution]], Tensors]
"""From the round, what was sent and the replies to their mean."""


class FedAvg:
    """The mean weighted by examples (McMahan et al., 2017)."""

    rate: ClassVar[float] = 1.0
    """η where `server-learning-rate` leaves it open."""

    def __init__(self, config: AggregationConfig, mean: Mean = by_examples) -> None:
        """Begin without a past.

        Args:
            config: the parameters of the rule.
            mean: what the rules that average make their step from.
        """
        self.config, self._mean = config, mean
        self.learning_rate = config.server_learning_rate or self.rate
        self.state: Tensors = {}
        """What the next rounds need of the last ones; empty before there was one."""

    def __call__(
        self, server_round: int, sent: Tensors, replies: Sequence[Contribution]
    ) -> Tensors:
        """The next round's tensors.

        Args:
            server_round: of the run, from 1.
            sent: the tensors with which the clients began.
            replies: at least one, in the order of partition ids.
        """
        return self._mean(server_round, sent, replies)

    def _moment(self, kind: str, name: str, like: np.ndarray) -> np.ndarray:
        """A tensor of the state; zeros before there is one."""
        return self.state.get(f"{kind}/{name}", np.zeros_like(like))


class FedAvgM(FedAvg):
    """Momentum on the server (Hsu et al., 2019): ``v ← β v + Δ``, ``w ← w + η v``."""

    def __call__(
        self, server_round: int, sent: Tensors, replies: Sequence[Contribution]
    ) -> Tensors:
        """The next round's tensors."""
        made: Tensors = {}
        for name, mean in self._mean(server_round, sent, replies).items():
            kept = self._moment("momentum", name, mean) * np.float32(self.config.server_momentum)
            kept = kept + (mean - sent[name])
            self.state[f"momentum/{name}"] = kept
            made[name] = sent[name] + np.float32(self.learning_rate) * kept
        return made


class FedAdam(FedAvg):
    """Adam on the server (Reddi et al., 2021), its step corrected for the first rounds as Flower's
    is: ``η √(1 - β₂^(t+1)) / (1 - β₁^(t+1))`` in round t.
    """

    rate = 0.01

    def __call__(
        self, server_round: int, sent: Tensors, replies: Sequence[Contribution]
    ) -> Tensors:
        """The next round's tensors."""
        beta1, beta2 = self.config.server_momentum, self.config.server_beta2
        step = self.learning_rate * (1 - beta2 ** (server_round + 1)) ** 0.5
        step /= 1 - beta1 ** (server_round + 1)
        made: Tensors = {}
        for name, mean in self._mean(server_round, sent, replies).items():
            change = mean - sent[name]
            first = beta1 * self._moment("m", name, mean) + (1 - beta1) * change
            second = beta2 * self._moment("v", name, mean) + (1 - beta2) * change**2
            self.state |= {f"m/{name}": first, f"v/{name}": second}
            made[name] = sent[name] + step * first / (np.sqrt(second) + self.config.server_tau)
        return made


class Median(FedAvg):
    """The median of each number, clients counting alike (Yin et al., 2018)."""

    def __call__(
        self, server_round: int, sent: Tensors, replies: Sequence[Contribution]
    ) -> Tensors:
        """The next round's tensors."""
        return {name: np.median(values, axis=0) for name, values in _stacked(replies).items()}


class TrimmedMean(FedAvg):
    """The mean of each number without the highest and lowest, clients counting alike (Yin et al.,
    2018); Flower's function.
    """

    def __call__(
        self, server_round: int, sent: Tensors, replies: Sequence[Contribution]
    ) -> Tensors:
        """The next round's tensors."""
        cut = self.config.trim_fraction
        return {name: trim_mean(values, cut) for name, values in _stacked(replies).items()}


class MultiKrum(FedAvg):
    """FedAvg of all but f replies, those that lie nearest to the others (Blanchard et al., 2017);
    Flower's function.
    """

    def __call__(
        self, server_round: int, sent: Tensors, replies: Sequence[Contribution]
    ) -> Tensors:
        """The next round's tensors."""
        count = max(1, len(replies) - self.config.krum_malicious)
        contents = [RecordDict({ARRAYS: to_array_record(reply.tensors)}) for reply in replies]
        chosen = {
            id(content) for content in select_multikrum(contents, self.config.krum_malicious, count)
        }
        kept = zip(contents, replies, strict=True)
        nearest = [reply for content, reply in kept if id(content) in chosen]
        return self._mean(server_round, sent, nearest)


class GateWeighted(FedAvg):
    """FedAvg in which expert e counts ``n_k ḡ_{k,e}``: as much as a client used it; ours."""

    def __call__(
        self, server_round: int, sent: Tensors, replies: Sequence[Contribution]
    ) -> Tensors:
        """The next round's tensors."""
        made = self._mean(server_round, sent, replies)
        gates = np.array([reply.gate for reply in replies])
        # [n, E]; relative to the largest, which leaves whole weights whole where gates are alike
        most = gates.max(axis=0)
        used = np.divide(gates, most, out=np.ones_like(gates), where=most > 0)
        experts = [np.split(reply.tensors[PROMPTS], gates.shape[1]) for reply in replies]
        means = []
        for expert, weights in enumerate(used.T):
            examples = [r.examples * w for r, w in zip(replies, weights.tolist(), strict=True)]
            versions = [{PROMPTS: own[expert]} for own in experts]
            means.append(weighted_mean(versions, examples)[PROMPTS])
        return {**made, PROMPTS: np.concatenate(means)}


AGGREGATIONS: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "multi-krum": MultiKrum,
    "gate-weighted": GateWeighted,
}
"""The values of `aggregation`."""


def clipped(sent: Tensors, made: Tensors, most: float) -> Tensors:
    """A client's tensors, their distance from what it was sent at most `most` (L2, over all)."""
    updates = {name: value - sent[name] for name, value in made.items()}
    length = norm(updates)
    if length <= most:
        return made
    return {name: sent[name] + np.float32(most / length) * u for name, u in updates.items()}


def _stacked(replies: Sequence[Contribution]) -> Tensors:
    """Each tensor of n clients as [n, ...]."""
    return {name: np.stack([r.tensors[name] for r in replies]) for name in replies[0].tensors}
