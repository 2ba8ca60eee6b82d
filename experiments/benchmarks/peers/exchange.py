"""What the contestants' processes are told and what they answer, as JSON files.

A peer may live in an environment without this project's dependencies: the standard library only.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One example as token ids; the loss is on the answer."""

    question: list[int]
    answer: list[int]


@dataclass(frozen=True)
class ClientRows:
    """What one client trains on in one round, in its order: a step takes the next batch."""

    examples: int
    """Training examples that the client has in all: its weight in FedAvg."""
    rows: list[Row]


@dataclass(frozen=True)
class Task:
    """The work of a peer, which is that of our own run."""

    model: str
    """Folder of the base model."""
    dtype: str
    initial: str
    """Safetensors file of our method's initial tensors."""
    rank: int
    alpha: float
    learning_rate: float
    batch_size: int
    rounds: list[list[ClientRows]]
    """The active clients of each round."""

    def write(self, path: Path) -> None:
        """For another process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Task":
        """What `write` wrote."""
        held = json.loads(path.read_text(encoding="utf-8"))
        rounds = [
            [ClientRows(own["examples"], [Row(**row) for row in own["rows"]]) for own in clients]
            for clients in held.pop("rounds")
        ]
        return cls(**held, rounds=rounds)


@dataclass(frozen=True)
class Round:
    """One round of a contestant."""

    seconds: float
    """From the end of the round before to the end of this one."""
    training: float
    """Seconds of all clients' local steps, whichever of them ran at the same time."""
    steps: int
    nll: float
    """Sum over the answers' tokens of all batches, each before its step."""
    tokens: int

    @property
    def loss(self) -> float:
        """A token's."""
        return self.nll / self.tokens


@dataclass(frozen=True)
class Answer:
    """What a contestant did."""

    trainable: int
    """Trained parameters of a client."""
    rounds: list[Round]
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """For another process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Answer":
        """What `write` wrote."""
        held = json.loads(path.read_text(encoding="utf-8"))
        return cls(held["trainable"], [Round(**own) for own in held["rounds"]], held["versions"])
