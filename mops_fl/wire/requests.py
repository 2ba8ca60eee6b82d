"""What the server asks of a client, as typed values: written by the server, read by the client."""

from collections.abc import Collection
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from mops_fl.code_digest import code_digest
from mops_fl.wire.parsing import SHA256, Fields, MalformedError, read_tensors, records, shown
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
    code: str = field(default_factory=code_digest)
    """Digest of the server's code."""

    def record(self) -> ConfigRecord:
        """As it travels."""
        record = ConfigRecord({"run": self.run})
        record["server-round"], record["last-trained"] = self.server_round, self.last_trained
        record["clients"], record["code"] = self.clients, self.code
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
        found = cls(run, current, last, clients, fields.text("code", SHA256))
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
    code: str = field(default_factory=code_digest)
    """Digest of the server's code."""

    def content(self) -> RecordDict:
        """As it travels."""
        told = ConfigRecord({"tasks": list(self.tasks), "code": self.code})
        return RecordDict({ARRAYS: to_array_record(self.tensors), CONFIG: told})

    @classmethod
    def read(cls, content: RecordDict, shapes: Shapes) -> "PretrainRequest":
        """As it arrived.

        Raises:
            MalformedError: it is not as `content` makes it.
        """
        arrays, config = records(content, (ARRAYS, ArrayRecord), (CONFIG, ConfigRecord))
        fields = Fields(config)
        code = fields.text("code", SHA256)
        found = cls(read_tensors(arrays, shapes), fields.texts("tasks"), code)
        fields.done()
        return found
