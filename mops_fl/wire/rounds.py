"""What a strategy tells whoever watches it, round by round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mops_fl.metrics import GateSum, Tallies, Tally


@dataclass(frozen=True)
class TrainRow:
    """One client's training in one round."""

    partition: int
    examples: int
    steps: int
    tally: Tally
    seconds: float


@dataclass(frozen=True)
class Drift:
    """How far the clients' versions of an expert are apart before they are averaged."""

    cosine: float
    """Mean cosine between two clients' versions."""
    update_cosine: float
    """Mean cosine between what two clients added to the common start."""


@dataclass(frozen=True)
class PrivacySpent:
    """What differential privacy has cost up to a round, and its noise."""

    epsilon: float
    """ε of all rounds so far, at δ."""
    delta: float
    clip: float
    """L2 norm that an update has at most."""
    noise: float
    """Standard deviation of the noise on each number of the mean."""
    clipped_share: float
    """Share of the round's updates that were longer; NaN where that is not to be told."""
    snr: float
    """Signal to noise: the largest norm that the mean update can have, over the noise's."""


@dataclass(frozen=True)
class TrainRound:
    """A round's training, before its evaluation."""

    server_round: int
    rows: tuple[TrainRow, ...]
    """Valid replies, by partition id."""
    failures: dict[int, str]
    """Partition id and reason of every reply that was not used."""
    bytes_up: int
    bytes_down: int
    drift: Sequence[Drift] = ()
    """Of each expert; empty where it cannot be told."""
    privacy: PrivacySpent | None = None
    """None without differential privacy."""


@dataclass(frozen=True)
class EvaluateRound:
    """A round's evaluation over held-out rows."""

    server_round: int
    tallies: dict[str, Tally]
    """Sums of each task over the clients that may train."""
    gate: dict[str, GateSum]
    """Likewise."""
    clients: Mapping[int, Tallies]
    """Sums of each client and task, by partition id: the valid replies."""
    validation: Mapping[int, Tallies]
    """The same over validation rows, of the clients that may train."""
    failures: dict[int, str]
    bytes_down: int


class Observer(Protocol):
    """Who is told of rounds as they end."""

    def on_train(self, result: TrainRound) -> None:
        """A round's training was aggregated."""

    def on_evaluate(self, result: EvaluateRound) -> None:
        """A round's evaluation was summed."""

    def on_personalise(self, result: EvaluateRound) -> None:
        """Clients were evaluated once more, each after steps of its own."""
