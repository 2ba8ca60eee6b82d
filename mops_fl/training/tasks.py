"""What goes to a worker and comes back from it."""

from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict

from mops_fl.errors import MopsError, RunError


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


class NotStartedError(RunError):
    """A worker could not load what every task needs; its tasks were not tried."""


def reason_of(error: BaseException) -> str:
    """An exception in words, for those who do not see its traceback."""
    return str(error) if isinstance(error, MopsError) else f"{type(error).__name__}: {error}"
