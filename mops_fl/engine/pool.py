"""Workers side by side, each taking the next shard when it is done with one."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.logger import log

from mops_fl.training.tasks import Answer, NotStartedError, Served, Task, reason_of

_LOSSES_OF_A_SHARD = 2
"""Workers that may be lost while they serve a shard, before its clients get error replies."""

_LOSSES_OF_A_PLACE = 3
"""Shards that a place may lose, one after the other, before it is retired."""

Shard = Sequence[Task]
"""Tasks of one message type that one worker serves together."""


class Worker(Protocol):
    """What serves shards, one at a time."""

    def serve(self, tasks: Shard) -> Served:
        """Answer the tasks in their order; an exception means that the worker is lost."""

    def stop(self) -> None:
        """End the worker, if it has not ended by itself."""


@dataclass(eq=False)
class _Place:
    """Where one worker runs at a time."""

    start: Callable[[], Worker]
    worker: Worker | None = None
    losses: int = 0
    """Shards lost here, and workers that could not start, since the last shard served."""


@dataclass(eq=False)
class _Job:
    """A shard that is not answered yet."""

    tasks: Shard
    losses: int = 0
    """Workers lost while they served it."""
    lost_by: set[_Place] = field(default_factory=set)


class Pool:
    """One thread and one place for each worker. Workers start with their first shard.

    A worker is lost when it raises anything: its process died, its device failed, or it could not
    start. Another takes its place, and the shard that it had is served once more, elsewhere if
    there is another place. A second worker that is lost with a shard costs the shard: its clients
    get error replies. A worker that could not start costs no shard. A place that loses three shards
    in a row, or as many starts, is retired. Without any place, all clients get error replies.
    """

    def __init__(
        self, starts: Sequence[Callable[[], Worker]], deliver: Callable[[Answer], None]
    ) -> None:
        """Begin without any work.

        Args:
            starts: for each place what starts a worker there; its text names the place in logs.
            deliver: called with one answer to every task, from any thread.
        """
        self._deliver = deliver
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        """Those that no worker has."""
        self._places = {_Place(start) for start in starts}
        self._retired: list[str] = []
        """What happened to places that are no more."""
        self._told: set[str] = set()
        for place in list(self._places):
            threading.Thread(target=self._run, args=(place,), daemon=True).start()

    def put(self, shard: Shard) -> None:
        """Let the next free worker serve a shard."""
        with self._changed:
            self._jobs.append(_Job(shard))
            self._changed.notify_all()
        self._refuse_without_places()

    def _run(self, place: _Place) -> None:
        while place in self._places:
            job = self._next(place)
            try:
                place.worker = place.worker or place.start()
                served = _whole(place.worker.serve(job.tasks), job.tasks)
            except BaseException as error:  # a thread that ended would leave its clients waiting
                self._lose(place, job, error)
                continue
            place.losses = 0
            for warning in served.warnings:
                self._tell(warning)
            for task, answer in zip(job.tasks, served.answers, strict=True):
                self._give(task, answer)

    def _next(self, place: _Place) -> _Job:
        with self._changed:
            while True:
                for job in self._jobs:
                    if place in self._fit(job):
                        self._jobs.remove(job)
                        return job
                self._changed.wait()

    def _fit(self, job: _Job) -> set[_Place]:
        """Places that may serve a shard: after a loss, the soundest of those not yet tried."""
        if not job.lost_by:
            return self._places
        untried = self._places - job.lost_by or self._places
        least = min(place.losses for place in untried)
        return {place for place in untried if place.losses == least}

    def _lose(self, place: _Place, job: _Job, error: BaseException) -> None:
        """Decide what becomes of a place and of the shard whose worker was lost there."""
        started = place.worker is not None and not isinstance(error, NotStartedError)
        reason = reason_of(error)
        log(logging.WARNING, "a worker was lost: %s: %s", place.start, reason)
        _end(place)
        with self._changed:
            # A shard that ends a second worker here says no more against the place.
            place.losses += not (started and place in job.lost_by)
            job.losses += started
            job.lost_by.add(place)
            if place.losses >= _LOSSES_OF_A_PLACE:
                self._retire(place, reason)
            again = job.losses < _LOSSES_OF_A_SHARD
            if again:
                self._jobs.insert(0, job)
            self._changed.notify_all()
        if not again:
            self._refuse(job, f"the worker that served this client was lost: {reason}")
        self._refuse_without_places()

    def _retire(self, place: _Place, reason: str) -> None:
        self._places = self._places - {place}
        self._retired.append(f"{place.start}: {reason}")
        log(
            logging.ERROR,
            "no worker is started here any more, after %d losses in a row: %s (%d of %d places "
            "are left)",
            place.losses,
            self._retired[-1],
            len(self._places),
            len(self._places) + len(self._retired),
        )

    def _refuse_without_places(self) -> None:
        with self._changed:
            if self._places:
                return
            jobs, self._jobs = self._jobs, []
            why = "; ".join(self._retired)
        for job in jobs:
            self._refuse(job, f"no place for workers is left: {why}")

    def _refuse(self, job: _Job, reason: str) -> None:
        for task in job.tasks:
            self._give(task, _failed(task, reason))

    def _give(self, task: Task, answer: Answer) -> None:
        """Deliver an answer, or an error in the place of one that cannot be delivered."""
        try:
            self._deliver(answer)
            return
        except Exception as error:
            reason = f"the reply could not be delivered: {reason_of(error)}"
            log(logging.ERROR, "%s", reason)
        try:
            self._deliver(_failed(task, reason))
        except Exception as error:
            log(logging.ERROR, "nor could an error reply: %s", reason_of(error))

    def _tell(self, warning: str) -> None:
        with self._changed:
            if warning not in self._told:
                self._told.add(warning)
                log(logging.WARNING, "%s", warning)


def _end(place: _Place) -> None:
    """Stop the worker of a place, which may be past stopping."""
    worker, place.worker = place.worker, None
    try:
        if worker is not None:
            worker.stop()
    except Exception as error:
        log(logging.WARNING, "a lost worker could not be stopped: %s", reason_of(error))


def _whole(served: Served, tasks: Shard) -> Served:
    """What a worker gave back, if it is one answer to each task in their order.

    Raises:
        ValueError: it is not.
    """
    answered = [answer.reply.metadata.reply_to_message_id for answer in served.answers]
    if answered != [task.message.metadata.message_id for task in tasks]:
        raise ValueError("the worker did not answer the tasks that it had")
    return served


def _failed(task: Task, reason: str) -> Answer:
    """An error reply, after which the client's state is what it was."""
    error = Error(ErrorCode.CLIENT_APP_CRASHED, reason)
    return Answer(Message(error, reply_to=task.message), task.context.state)
