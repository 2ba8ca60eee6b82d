"""The engine on real Ray workers, without Flower around it."""

import os
import signal

import pytest
import ray
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from tasks import configured, values

from mops_fl.engine.grid import CohortGrid
from mops_fl.engine.ray_worker import RayWorker, find_slots
from mops_fl.wire.records import ARRAYS, CONFIG, ROUND, to_array_record

pytestmark = pytest.mark.slow


class Outer(Grid):
    """What Flower gives to the ServerApp: here it only knows its run."""

    run = Run.create_empty(7)

    def set_run(self, run):
        raise NotImplementedError

    create_message = get_node_ids = push_messages = pull_messages = send_and_receive = set_run


@pytest.fixture
def cluster(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 7, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    # As Flower's own actors do
    reserved = ray.remote(num_cpus=2)(Idle).remote()
    yield reserved
    ray.shutdown()


class Idle:
    """Holds CPUs."""


def test_a_worker_that_dies_costs_one_shard_and_comes_back(tiny_llama, cluster):
    config = configured(tiny_llama)
    slots = find_slots("cpu")
    assert [slot.device for slot in slots] == ["cpu", "cpu"]
    started = []

    def start():
        started.append(RayWorker(config, slots[0]))
        return started[-1]

    grid = CohortGrid(Outer(), config, [start], 3)

    def train():
        content = RecordDict({ARRAYS: to_array_record(values(config))})
        content[CONFIG] = ConfigRecord({ROUND: 1})
        messages = [
            Message(content, message_type=MessageType.TRAIN, dst_node_id=node)
            for node in grid.get_node_ids()
        ]
        replies = grid.send_and_receive(messages, timeout=800)
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    assert [reply.error.reason for reply in train() if reply.has_error()] == []
    os.kill(ray.get(started[0]._actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    replies = train()
    assert [reply.has_error() for reply in replies] == [True] * 3 + [False] * 3
    assert "the worker that served this client was lost" in replies[0].error.reason
    assert not any(reply.has_error() for reply in train())
    assert len(started) == 2
