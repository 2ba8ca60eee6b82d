"""A Flower Grid of virtual nodes whose messages are served in cohorts."""

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from mops_fl.config import Config
from mops_fl.engine.pool import Pool, Shard, Worker
from mops_fl.engine.watched import WatchedGrid
from mops_fl.training.tasks import Answer, Task
from mops_fl.wire.records import PARTITION

_FIRST_NODE = 2
"""Node id of partition 0; Flower's SuperLink is node 1."""


class CohortGrid(Grid):
    """Virtual nodes 0 to ``num-clients - 1`` of this process, on a `Pool` of workers."""

    def __init__(
        self,
        grid: Grid,
        config: Config,
        starts: Sequence[Callable[[], Worker]],
        cohort_size: int,
    ) -> None:
        """Take the place of another Grid.

        Args:
            grid: the one that Flower gave; only its run is used.
            config: the run.
            starts: for each worker what starts it.
            cohort_size: clients in a shard; 0 to share a phase's clients evenly among workers.
        """
        self._grid, self._workers, self._cohort_size = grid, len(starts), cohort_size
        self._contexts = {
            _FIRST_NODE + partition: Context(
                run_id=grid.run.run_id,
                node_id=_FIRST_NODE + partition,
                node_config={PARTITION: partition, "num-partitions": config.partition.num_clients},
                state=RecordDict(),
                run_config={},
            )
            for partition in range(config.partition.num_clients)
        }
        self._lock = threading.Lock()
        self._replies: dict[str, Message] = {}
        self._pool = Pool(starts, self._deliver)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start serving messages; the ids to ask for their replies.

        Shards hold messages of one type in the order of partition ids, so that the same clients
        meet in a forward pass whoever serves them.
        """
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
        for _, same in groupby(sorted(messages, key=_order), key=lambda m: m.metadata.message_type):
            for shard in self._shards([self._task(message) for message in same]):
                self._pool.put(shard)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come since the last call."""
        with self._lock:
            return [self._replies.pop(id_) for id_ in list(message_ids) if id_ in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the replies of all, or for `timeout` seconds."""
        return WatchedGrid(self, lambda *_: None).send_and_receive(messages, timeout=timeout)

    def get_node_ids(self) -> Iterable[int]:
        """All virtual nodes."""
        return list(self._contexts)

    def create_message(self, *args, **kwargs):
        return self._grid.create_message(*args, **kwargs)

    def set_run(self, run):
        self._grid.set_run(run)

    @property
    def run(self):
        return self._grid.run

    def _task(self, message: Message) -> Task:
        return Task(message, self._contexts[message.metadata.dst_node_id])

    def _shards(self, tasks: Sequence[Task]) -> list[Shard]:
        size = self._cohort_size or -(-len(tasks) // self._workers)
        return [tasks[start : start + size] for start in range(0, len(tasks), size)]

    def _deliver(self, answer: Answer) -> None:
        reply = answer.reply
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        self._contexts[reply.metadata.src_node_id].state = answer.state
        with self._lock:
            self._replies[reply.metadata.reply_to_message_id] = reply


def _order(message: Message) -> tuple[str, int]:
    return message.metadata.message_type, message.metadata.dst_node_id
