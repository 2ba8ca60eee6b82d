"""The pool over workers that are plain objects of this process, sound ones and others."""

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tasks import task

from mops_fl.engine.pool import Pool
from mops_fl.training.tasks import Answer, NotStartedError, Served, Task

PATIENCE_SECONDS = 20


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 1, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def nothing(_partitions: Sequence[int]) -> None:
    pass


@dataclass
class Place:
    """Starts workers that do `on_serve` first, and counts what it starts."""

    name: str = "sound"
    on_serve: Callable[[Sequence[int]], None] = nothing
    on_start: Callable[[], None] = lambda: None
    on_stop: Callable[[], None] = lambda: None
    starts: int = 0
    served: list[list[int]] = field(default_factory=list)
    """Partitions of every shard that a worker here was given, answered or not."""

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> "Place":
        self.starts += 1
        self.on_start()
        return self

    def serve(self, tasks: Sequence[Task]) -> Served:
        partitions = [partition_of(each.message) for each in tasks]
        self.served.append(partitions)
        self.on_serve(partitions)
        answers = [Message(RecordDict(), reply_to=each.message) for each in tasks]
        return Served([Answer(reply, RecordDict()) for reply in answers], [])

    def stop(self) -> None:
        self.on_stop()


def partition_of(message: Message) -> int:
    return int(message.metadata.message_id.removeprefix("message-"))


def raising(error: BaseException, *culprits: int) -> Callable[..., None]:
    """Raises, always or when a shard holds one of the partitions."""

    def act(partitions: Sequence[int] = ()) -> None:
        if not culprits or set(culprits) & set(partitions):
            raise error

    return act


class Run:
    """Shards put into a pool, and what comes of it."""

    def __init__(self, *places: Place, deliver: Callable[[Answer], None] = lambda _: None) -> None:
        self._came: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._check = deliver
        self.pool = Pool(places, self._deliver)

    def _deliver(self, answer: Answer) -> None:
        self._check(answer)
        self._came.put(answer)

    def put(self, partitions: Sequence[int], size: int) -> None:
        tasks = [task(partition, {}) for partition in partitions]
        for start in range(0, len(tasks), size):
            self.pool.put(tasks[start : start + size])

    def answers(self, count: int) -> dict[int, str]:
        """Partition to its error, empty where there is none; each must be answered once."""
        answers = [self._came.get(timeout=PATIENCE_SECONDS) for _ in range(count)]
        time.sleep(0.02)
        assert self._came.empty(), "more answers than tasks"
        partitions = [int(a.reply.metadata.reply_to_message_id.split("-")[1]) for a in answers]
        assert len(set(partitions)) == count, "a task was answered twice"
        return {
            partition: answer.reply.error.reason if answer.reply.has_error() else ""
            for partition, answer in zip(partitions, answers, strict=True)
        }

    def serve(self, count: int, size: int = 1) -> dict[int, str]:
        self.put(range(count), size)
        return self.answers(count)


def lost(answers: dict[int, str]) -> list[int]:
    return sorted(partition for partition, error in answers.items() if error)


def once(error: BaseException) -> Callable[..., None]:
    """Raises the first time only."""
    errors = [error]

    def act(_partitions: Sequence[int] = ()) -> None:
        if errors:
            raise errors.pop()

    return act


@pytest.mark.parametrize("places", [1, 2])
def test_a_lost_worker_costs_a_retry(places):
    fail = once(RuntimeError("the process died"))
    run = Run(*(Place(on_serve=fail) for _ in range(places)))
    assert lost(run.serve(10, size=5)) == []


def test_a_lost_shard_waits_for_another_place():
    """Though the place that lost it is free again before that."""
    gate, fail = threading.Event(), once(RuntimeError("died"))

    def act(partitions):
        if 1 in partitions:
            assert gate.wait(PATIENCE_SECONDS)
        else:
            fail()

    places = [Place(on_serve=act), Place(on_serve=act)]
    run = Run(*places)
    run.put([1], 1)
    until(lambda: any(place.served for place in places))
    run.put([0], 1)
    until(lambda: all(place.served for place in places))
    time.sleep(0.05)
    gate.set()
    assert lost(run.answers(2)) == []
    assert sorted(place.served for place in places) == [[[0]], [[1], [0]]]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("places", [1, 2, 4])
def test_a_shard_that_ends_every_worker_is_tried_twice_and_costs_no_other(places):
    error = RuntimeError("out of memory")
    all_places = [Place(on_serve=raising(error, 6)) for _ in range(places)]
    run = Run(*all_places)
    answers = run.serve(20, size=2)
    assert lost(answers) == [6, 7]
    assert answers[7] == (
        "the worker that served this client was lost: RuntimeError: out of memory"
    )
    assert sum(place.served.count([6, 7]) for place in all_places) == 2
    assert lost(run.serve(6)) == []


BAD = {
    "cannot start": {"on_start": raising(OSError("no such device"))},
    "cannot load": {"on_serve": raising(NotStartedError("no such device"))},
    "dies": {"on_serve": raising(OSError("no such device"))},
    "dies twice": {
        "on_serve": raising(OSError("no such device")),
        "on_stop": raising(OSError("no such process")),
    },
    "exits": {"on_serve": raising(SystemExit("no such device"))},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_place_does_not_eat_the_queue(kind, caplog):
    bad = Place("cuda:1 on gpu-7", **BAD[kind])
    sound = [Place(on_serve=lambda _: time.sleep(0.01)) for _ in range(3)]
    run = Run(bad, *sound)
    assert lost(run.serve(20)) == []
    assert lost(run.serve(20)) == []
    assert bad.starts == 3
    (told,) = [r.message for r in caplog.records if "no worker is started here any more" in r.msg]
    assert "cuda:1 on gpu-7" in told
    assert "no such device" in told
    assert "3 of 4 places are left" in told


@pytest.mark.parametrize("kind", ["cannot start", "cannot load"])
def test_one_sound_place_is_enough_for_all(kind):
    bad = [Place(**BAD[kind]) for _ in range(5)]
    run = Run(*bad, Place(on_serve=lambda _: time.sleep(0.01)))
    for _ in range(3):
        assert lost(run.serve(20)) == []


@pytest.mark.parametrize("kind", BAD)
def test_without_any_place_everything_is_answered_with_the_reason(kind):
    run = Run(Place("cpu on here", **BAD[kind]), Place("cpu on there", **BAD[kind]))
    for count in (20, 3):
        answers = run.serve(count)
        assert len(lost(answers)) == count
        assert all("no such device" in reason for reason in answers.values())
    assert "no place for workers is left" in answers[0]
    assert "cpu on here" in answers[0]
    assert "cpu on there" in answers[0]


@pytest.mark.parametrize("places", [1, 2])
def test_only_losses_in_a_row_retire_a_place(places):
    culprits = range(0, 20, 4)
    fail = raising(RuntimeError("died"), *culprits)
    run = Run(*(Place(on_serve=fail) for _ in range(places)))
    for _ in range(2):
        assert lost(run.serve(20)) == list(culprits)


def test_a_reply_that_cannot_be_delivered_is_an_error_for_its_client_alone():
    def deliver(answer: Answer) -> None:
        if not answer.reply.has_error() and "-1" in answer.reply.metadata.reply_to_message_id:
            raise KeyError("no such node")

    place = Place()
    run = Run(place, deliver=deliver)
    answers = run.serve(4, size=2)
    assert lost(answers) == [1]
    assert "the reply could not be delivered: KeyError: 'no such node'" in answers[1]
    assert place.served == [[0, 1], [2, 3]]


def test_a_client_that_nothing_can_be_delivered_to_holds_up_no_other():
    run = Run(Place(), deliver=lambda answer: raising(KeyError("full"))() if is_one(answer) else 0)
    run.put(range(4), 2)
    assert lost(run.answers(3)) == []


def is_one(answer: Answer) -> bool:
    return answer.reply.metadata.reply_to_message_id == "message-1"


@pytest.mark.parametrize(
    "change",
    [lambda a: a[:-1], lambda a: a + a[:1], lambda a: a[::-1], lambda _: [], lambda _: [7]],
)
def test_a_worker_must_answer_its_tasks_one_by_one(change):
    class Odd(Place):
        def serve(self, tasks):
            served = super().serve(tasks)
            return Served(change(served.answers), []) if self.starts == 1 else served

    odd = Odd()
    assert lost(Run(odd).serve(2, size=2)) == []
    assert odd.starts == 2


def unsteady(rng: random.Random, share: float) -> Callable[..., None]:
    """Takes a moment, then raises in a share of the calls."""
    lock = threading.Lock()

    def act(_partitions: Sequence[int] = ()) -> None:
        with lock:
            moment, fails, load = rng.random() / 500, rng.random() < share, rng.random() < 0.3
        time.sleep(moment)
        if fails:
            raise NotStartedError("unlucky") if load else RuntimeError("unlucky")

    return act


@pytest.mark.parametrize("seed", range(25))
def test_every_task_is_answered_once_in_every_schedule(seed):
    rng = random.Random(seed)
    share = rng.choice([0.05, 0.3, 0.6, 1.0])
    places = [
        Place(
            str(number),
            unsteady(random.Random(rng.random()), share),
            unsteady(random.Random(rng.random()), share / 2),
            unsteady(random.Random(rng.random()), share),
        )
        for number in range(rng.randint(1, 5))
    ]
    deliver = unsteady(random.Random(rng.random()), share / 10)
    run = Run(*places, deliver=lambda a: None if a.reply.has_error() else deliver())
    for _ in range(3):
        count, size = rng.randint(1, 40), rng.randint(1, 4)
        for place in places:
            place.served.clear()
        answers = run.serve(count, size)
        assert sorted(answers) == list(range(count))


@pytest.mark.parametrize("seed", range(10))
def test_no_shard_is_lost_with_more_than_two_workers(seed):
    rng = random.Random(seed)
    places = [
        Place(on_serve=unsteady_process(random.Random(rng.random())))
        for _ in range(rng.randint(1, 4))
    ]
    answers = Run(*places).serve(30)
    tries = Counter(shard[0] for place in places for shard in place.served)
    assert max(tries.values()) <= 2
    for partition, error in answers.items():
        if "that served this client" in error:
            assert tries[partition] == 2


def unsteady_process(rng: random.Random) -> Callable[[Sequence[int]], None]:
    def act(_partitions: Sequence[int]) -> None:
        time.sleep(rng.random() / 500)
        if rng.random() < 0.3:
            raise RuntimeError("died")

    return act
