"""The engine on real Ray workers, without Flower around it."""

import gc
import os
import signal

import numpy as np
import pytest
import ray
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from tasks import ASSIGNMENT, configured, values

from mops_fl.engine.grid import CohortGrid
from mops_fl.engine.ray_worker import RayPlace, RayWorker, find_slots
from mops_fl.engine.slots import Slot
from mops_fl.wire.records import ARRAYS, CONFIG, from_array_record, to_array_record

pytestmark = [
    pytest.mark.slow,
    # what ray leaves to the garbage collector, and a word about its next version
    pytest.mark.filterwarnings("ignore:unclosed file .*/dev/null:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
]


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
    gc.collect()


class Idle:
    """Holds CPUs."""


def train(config, grid: CohortGrid) -> list[Message]:
    content = RecordDict({ARRAYS: to_array_record(values(config))})
    content[CONFIG] = ASSIGNMENT.record()
    messages = [
        Message(content, message_type=MessageType.TRAIN, dst_node_id=node)
        for node in grid.get_node_ids()
    ]
    replies = grid.send_and_receive(messages, timeout=200)
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def tensors_of(reply: Message):
    return from_array_record(reply.content.array_records[ARRAYS])


def test_a_worker_that_dies_costs_a_retry_with_the_same_numbers(tiny_llama, cluster):
    config = configured(tiny_llama)
    slots = find_slots("cpu", None)
    assert [slot.device for slot in slots] == ["cpu", "cpu"]
    started = []

    def start():
        started.append(RayWorker(config, slots[0]))
        return started[-1]

    grid = CohortGrid(Outer(), config, [start], 3)

    untroubled = train(config, grid)
    assert [reply.error.reason for reply in untroubled if reply.has_error()] == []
    os.kill(ray.get(started[0]._actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    for reply, other in zip(train(config, grid), untroubled, strict=True):
        ours, theirs = tensors_of(reply), tensors_of(other)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert len(started) == 2


def test_a_model_that_cannot_be_loaded_retires_the_place_and_says_why(tmp_path, cluster):
    config = configured(tmp_path / "gone")
    (slot, _) = find_slots("cpu", None)
    grid = CohortGrid(Outer(), config, [RayPlace(config, slot)], 3)
    for reply in train(config, grid):
        assert "no place for workers is left: cpu on " in reply.error.reason
        assert str(tmp_path) in reply.error.reason


def test_a_machine_that_is_gone_is_a_place_that_is_retired(tiny_llama, cluster):
    config = configured(tiny_llama)
    gone = Slot("f" * 56, "cpu", 1, "elsewhere")
    (sound, _) = find_slots("cpu", None)
    places = [RayPlace(config, gone), RayPlace(config, sound)]
    replies = train(config, CohortGrid(Outer(), config, places, 1))
    assert [reply.error.reason for reply in replies if reply.has_error()] == []


def test_slots_are_as_many_as_workers_of_so_many_threads(cluster):
    assert [slot.threads for slot in find_slots("cpu", 1)] == [1, 1]
    assert [slot.threads for slot in find_slots("cpu", 2)] == [2]
