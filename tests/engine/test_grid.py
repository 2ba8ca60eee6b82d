"""The Grid and its pool over workers that are plain objects of this process."""

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from mops_fl.config import Config
from mops_fl.engine.grid import CohortGrid
from mops_fl.engine.watched import WatchedGrid
from mops_fl.engine.worker import Answer, Served

CONFIG = Config.from_flat({"num-clients": 10, "active-clients": 4})


class Outer(Grid):
    """What Flower gives to the ServerApp: here it only knows its run."""

    run = Run.create_empty(7)

    def set_run(self, run):
        raise NotImplementedError

    create_message = get_node_ids = push_messages = pull_messages = send_and_receive = set_run


class Echo:
    """Answers with the partition, and counts its calls in each client's state."""

    def __init__(self, shards: list, fail=lambda _partitions: None) -> None:
        self.shards, self.fail, self.stopped = shards, fail, False

    def serve(self, tasks):
        partitions = [task.context.node_config["partition-id"] for task in tasks]
        self.shards.append((id(self), partitions))
        self.fail(partitions)
        answers = []
        for task, partition in zip(tasks, partitions, strict=True):
            count = task.context.state.get("count", ConfigRecord({"n": 0}))["n"] + 1
            record = ConfigRecord({"partition": partition, "count": count})
            reply = Message(RecordDict({"echo": record}), reply_to=task.message)
            answers.append(Answer(reply, RecordDict({"count": ConfigRecord({"n": count})})))
        return Served(answers, ["memory is short"])

    def stop(self):
        self.stopped = True


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 7, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def ask(grid: Grid, nodes, kind="train", timeout=20):
    messages = [Message(RecordDict(), message_type=kind, dst_node_id=node) for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    by_id = {reply.metadata.reply_to_message_id: reply for reply in replies}
    return [by_id[message.metadata.message_id] for message in messages]


def echoed(replies) -> list[int]:
    return [reply.content["echo"]["partition"] for reply in replies]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shards_do_not_depend_on_the_workers_or_the_order(workers):
    shards: list = []
    grid = CohortGrid(Outer(), CONFIG, [lambda: Echo(shards)] * workers, 4)
    nodes = list(grid.get_node_ids())
    assert len(nodes) == len(set(nodes)) == 10
    assert echoed(ask(grid, reversed(nodes))) == list(reversed(range(10)))
    assert sorted(p for _, p in shards) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len({worker for worker, _ in shards}) <= workers


def test_without_a_size_each_worker_has_an_even_share():
    shards: list = []
    grid = CohortGrid(Outer(), CONFIG, [lambda: Echo(shards)] * 3, 0)
    ask(grid, grid.get_node_ids())
    assert sorted(p for _, p in shards) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_replies_are_ordinary_messages_and_states_stay_with_their_client():
    grid = CohortGrid(Outer(), CONFIG, [lambda: Echo([])] * 2, 3)
    nodes = list(grid.get_node_ids())
    for count in (1, 2):
        for node, reply in zip(nodes, ask(grid, nodes), strict=True):
            assert reply.content["echo"]["count"] == count
            assert reply.metadata.src_node_id == node
            assert (reply.metadata.dst_node_id, reply.metadata.run_id) == (1, 7)
            assert reply.metadata.message_type == "train"
            assert reply.metadata.message_id
    assert echoed(ask(grid, nodes[:1])) == [0]


def test_replies_come_while_others_are_still_at_work():
    go_on = threading.Event()
    wait = {1: lambda: go_on.wait(20), 0: lambda: None}

    def fail(partitions):
        wait[partitions[0]]()

    seen = []

    def progress(_kind, done, _of):
        seen.append(done)
        if done == 1:
            go_on.set()

    grid = CohortGrid(Outer(), CONFIG, [lambda: Echo([], fail)] * 2, 1)
    ask(WatchedGrid(grid, progress), list(grid.get_node_ids())[:2])
    assert seen == [0, 1, 2]


def test_a_reply_is_pulled_once():
    grid = CohortGrid(Outer(), CONFIG, [lambda: Echo([])], 1)
    node = next(iter(grid.get_node_ids()))
    (sent,) = grid.push_messages([Message(RecordDict(), message_type="train", dst_node_id=node)])
    pulled = []
    deadline = time.monotonic() + 20
    while not pulled and time.monotonic() < deadline:
        pulled = list(grid.pull_messages([sent, "another"]))
    assert len(pulled) == 1
    assert list(grid.pull_messages([sent])) == []


def test_a_lost_worker_costs_a_retry_and_is_replaced():
    shards, started = [], []

    def fail(partitions):
        if 0 in partitions and len(started) == 1:
            raise RuntimeError("the worker died")

    def start():
        started.append(Echo(shards, fail))
        return started[-1]

    grid = CohortGrid(Outer(), CONFIG, [start], 4)
    replies = ask(grid, grid.get_node_ids())
    assert echoed(replies) == list(range(10))
    assert [reply.content["echo"]["count"] for reply in replies] == [1] * 10
    assert [worker.stopped for worker in started] == [True, False]
    assert echoed(ask(grid, grid.get_node_ids())) == list(range(10))


def test_a_worker_that_cannot_start_is_an_error_for_its_clients():
    def start():
        raise OSError("no such device")

    grid = CohortGrid(Outer(), CONFIG, [start], 10)
    replies = ask(grid, grid.get_node_ids())
    assert all("no such device" in reply.error.reason for reply in replies)


def test_a_warning_is_logged_once(caplog):
    grid = CohortGrid(Outer(), CONFIG, [lambda: Echo([])] * 2, 2)
    ask(grid, grid.get_node_ids())
    assert [r.message for r in caplog.records if "memory" in r.message] == ["memory is short"]
