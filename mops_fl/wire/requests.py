"""What the server asks of a client, as typed values: written by the server, read by the client."""

from collections.abc import Collection
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from mops_fl.wire.parsing import Fields, MalformedError, read_tensors, records, shown
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
    Shapes,
    Tensors,
    to_array_record,
)

DESCRIBE, PRETRAIN, TRAIN, EVALUATE = "query.describe", "query.pretrain", "train", "evaluate"
PERSONALISE = "query.personalise"
"""The kinds of messages, by Flower's message type."""


@dataclass(frozen=True)
class Assignment:
    """What one client is told about a round."""

    run: str
    """Names the run, for what a client keeps of it."""
    server_round: int
    """The round, from 1; 0 before training."""
    last_trained: int
    """The last round in which this client trained and was averaged; 0 for never."""
    clients: int
    """How many clients are asked the same."""

    def record(self) -> ConfigRecord:
        """As it travels."""
        record = ConfigRecord({"run": self.run})
        record["server-round"], record["last-trained"] = self.server_round, self.last_trained
        record["clients"] = self.clients
        return record

    @classmethod
    def read(cls, record: ConfigRecord) -> "Assignment":
        """As it arrived.

        Raises:
            MalformedError: it is not as `record` makes it.
        """
        fields = Fields(record)
        current = fields.whole("server-round", 0)
        last = fields.whole("last-trained", 0, current)
        run, clients = fields.text("run", r"[0-9a-f]{32}"), fields.whole("clients", 1)
        found = cls(run, current, last, clients)
        fields.done()
        return found


@dataclass(frozen=True)
class RoundRequest:
    """A train, evaluate or personalise message."""

    assignment: Assignment
    tensors: Tensors
    """Those that are averaged; a reply to a train message holds the same."""
    frozen: Tensors
    """Those that the client needs beside them."""

    @classmethod
    def read(cls, content: RecordDict, shapes: Shapes, averaged: Collection[str]) -> "RoundRequest":
        """As it arrived.

        Args:
            content: of the message.
            shapes: of all tensors of the method, P¹ among them where there is one.
            averaged: names of those that are averaged.

        Raises:
            MalformedError: a record or tensor is missing, unknown or of another shape.
        """
        wanted: list[tuple[str, type]] = [(ARRAYS, ArrayRecord), (CONFIG, ConfigRecord)]
        wanted += [(FROZEN, ArrayRecord)] if FROZEN in content else []
        arrays, config, *rest = records(content, *wanted)
        sent = [list(record) for record in (arrays, *rest)]
        names = [name for part in sent for name in part]
        if sorted(names) != sorted(shapes) or sorted(arrays) != sorted(averaged):
            raise MalformedError(f"tensors {shown(sent)} instead of {sorted(shapes)} in all")
        tensors, *frozen = (
            read_tensors(record, {name: shapes[name] for name in record})
            for record in (arrays, *rest)
        )
        return cls(Assignment.read(config), tensors, frozen[0] if frozen else {})


@dataclass(frozen=True)
class PretrainRequest:
    """A pretrain message."""

    tensors: Tensors
    """All trainable tensors at their initial values."""
    tasks: tuple[str, ...]
    """The run's, in expert order."""

    def content(self) -> RecordDict:
        """As it travels."""
        tasks = ConfigRecord({"tasks": list(self.tasks)})
        return RecordDict({ARRAYS: to_array_record(self.tensors), CONFIG: tasks})

    @classmethod
    def read(cls, content: RecordDict, shapes: Shapes) -> "PretrainRequest":
        """As it arrived.

        Raises:
            MalformedError: it is not as `content` makes it.
        """
        arrays, config = records(content, (ARRAYS, ArrayRecord), (CONFIG, ConfigRecord))
        fields = Fields(config)
        found = cls(read_tensors(arrays, shapes), fields.texts("tasks"))
        fields.done()
        return found
