"""Workers side by side, each taking the next shard when it is done with one."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.logger import log

from mops_fl.engine.tasks import Answer, Served, Task

Shard = Sequence[Task]
"""Tasks of one message type that one worker serves together."""


class Worker(Protocol):
    """What serves shards, one at a time."""

    def serve(self, tasks: Shard) -> Served:
        """Answer the tasks in their order; an exception means that the worker is lost."""

    def stop(self) -> None:
        """End the worker, if it has not ended by itself."""


class Pool:
    """One thread for each worker. Workers start with their first shard.

    A worker that is lost, because its process died or its device failed, costs the shard that it
    had: every client of it gets an error reply. A new worker takes its place for the next shard.
    """

    def __init__(
        self, starts: Sequence[Callable[[], Worker]], deliver: Callable[[Answer], None]
    ) -> None:
        """Begin without any work.

        Args:
            starts: for each worker what starts it.
            deliver: called with every answer, from any thread.
        """
        self._deliver = deliver
        self._shards: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        self._told: set[str] = set()
        self._telling = threading.Lock()
        for start in starts:
            threading.Thread(target=self._run, args=(start,), daemon=True).start()

    def put(self, shard: Shard) -> None:
        """Let the next free worker serve a shard."""
        self._shards.put(shard)

    def _run(self, start: Callable[[], Worker]) -> None:
        worker: Worker | None = None
        while True:
            shard = self._shards.get()
            try:
                worker = worker or start()
                served = worker.serve(shard)
            except Exception as error:
                if worker is not None:
                    worker.stop()
                worker, served = None, _lost(shard, error)
            for warning in served.warnings:
                self._tell(warning)
            for answer in served.answers:
                self._deliver(answer)

    def _tell(self, warning: str) -> None:
        with self._telling:
            if warning not in self._told:
                self._told.add(warning)
                log(logging.WARNING, "%s", warning)


def _lost(shard: Shard, error: Exception) -> Served:
    """Error replies to a whole shard."""
    reason = f"the worker that served this client was lost: {error}"
    return Served(
        [
            Answer(
                Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=task.message),
                task.context.state,
            )
            for task in shard
        ],
        [],
    )
