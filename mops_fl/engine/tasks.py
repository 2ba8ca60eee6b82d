"""What goes to a worker and comes back from it."""

from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict


@dataclass(frozen=True)
class Task:
    """A message for one virtual client, and the client's context."""

    message: Message
    context: Context


@dataclass(frozen=True)
class Answer:
    """The reply to a task, and the client's state after it."""

    reply: Message
    state: RecordDict


@dataclass(frozen=True)
class Served:
    """What a worker gives back for a shard."""

    answers: list[Answer]
    """In the order of the tasks."""
    warnings: list[str]
