"""Which engine a run takes, and where its workers go."""

import json
import subprocess
import sys

import pytest
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from mops_fl.config import Config
from mops_fl.engine import grid as grid_module
from mops_fl.engine import ray_worker
from mops_fl.engine.choose import Placement, start_engine
from mops_fl.engine.slots import Slot, slots_of, threads_of_a_client
from mops_fl.errors import ConfigError

NODES = {"b": {"CPU": 4.0, "GPU": 2.0}, "a": {"CPU": 3.0}, "c": {"memory": 1.0}}
CPUS = [Slot("a", "cpu", 1), Slot("a", "cpu", 1)]
GPUS = [Slot("a", "cuda:0", 4), Slot("b", "cuda:0", 4)]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", [("b", "cuda:0", 2), ("b", "cuda:1", 2)]),
        ("cuda", [("b", "cuda:0", 2), ("b", "cuda:1", 2)]),
        ("cuda:1", [("b", "cuda:1", 4)]),
        ("cuda:7", []),
        ("cpu", [("a", "cpu", 1)] * 3 + [("b", "cpu", 1)] * 4),
    ],
)
def test_slots_are_gpus_or_cpus_of_all_machines(device, expected):
    slots = slots_of(NODES, device, None)
    assert [(slot.node, slot.device, slot.threads) for slot in slots] == expected


@pytest.mark.parametrize(
    ("cpus", "threads", "workers"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (7, 3, 2), (2, 8, 1)]
)
def test_cpus_are_shared_out_in_the_threads_of_a_client(cpus, threads, workers):
    """As many workers as ``--workers`` where Ray has workers times threads CPUs."""
    assert slots_of({"a": {"CPU": float(cpus)}}, "cpu", threads) == (
        [Slot("a", "cpu", threads)] * workers
    )


def test_machines_are_counted_apart_and_gpus_take_the_threads_too():
    assert slots_of(NODES, "cpu", 2) == [Slot("a", "cpu", 2)] + [Slot("b", "cpu", 2)] * 2
    assert {slot.threads for slot in slots_of(NODES, "cuda", 1)} == {1}


@pytest.mark.parametrize(
    ("given", "threads"),
    [("3", 3), ("4,2", 4), ("0", None), ("", None), ("many", None), (None, None)],
)
def test_threads_are_those_of_the_environment(monkeypatch, given, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_of_a_client() == threads


def test_auto_takes_cpus_where_no_machine_has_a_gpu():
    assert {slot.device for slot in slots_of({"a": {"CPU": 2.0}}, "auto", None)} == {"cpu"}


class Deployed:
    """Stands for Flower's grid of a deployment."""


class Chosen:
    """What `CohortGrid` would be made of."""

    def __init__(self, _grid, _config, starts, cohort_size) -> None:
        self.workers, self.cohort_size = len(starts), cohort_size


@pytest.fixture
def simulated() -> Grid:
    return InMemoryGrid.__new__(InMemoryGrid)


@pytest.fixture
def choice(monkeypatch, simulated):
    """The grid for an engine, the slots that Ray has, and further values."""

    def choice(engine: str, slots, grid=None, **flat):
        monkeypatch.setattr(ray_worker, "find_slots", lambda _device, _threads: slots)
        monkeypatch.setattr(grid_module, "CohortGrid", Chosen)
        config = Config.from_flat({"engine": engine, **flat})
        return start_engine(config, grid or simulated)[0]

    return choice


@pytest.mark.parametrize(
    ("engine", "slots", "cohorts"),
    [
        ("clients", GPUS, False),
        ("cohort", GPUS, True),
        ("cohort", CPUS, True),
        ("auto", GPUS, True),
        ("auto", CPUS, False),
        ("auto", [], False),
    ],
)
def test_auto_takes_cohorts_on_gpus(choice, engine, slots, cohorts):
    assert isinstance(choice(engine, slots), Chosen) == cohorts


def test_cohorts_are_of_fixed_size_on_cpus_and_whole_shares_on_gpus(choice):
    assert choice("cohort", CPUS).cohort_size == 5
    assert choice("cohort", GPUS).cohort_size == 0
    assert choice("cohort", GPUS, **{"cohort-size": 3}).cohort_size == 3


def test_there_are_no_more_workers_than_shards(choice):
    few = {"num-clients": 12, "active-clients": 2, "num-samples": 0}
    assert choice("cohort", CPUS * 10, **few).workers == 3
    assert choice("cohort", CPUS * 10, **few, **{"cohort-size": 1}).workers == 12


def test_a_deployment_has_no_cohorts(choice):
    grid = Deployed()
    assert choice("auto", GPUS, grid) is grid
    with pytest.raises(ConfigError, match="engine=cohort is for simulations"):
        choice("cohort", GPUS, grid)


def test_a_device_that_no_machine_has_is_refused(choice):
    with pytest.raises(ConfigError, match="no machine of the Ray cluster"):
        choice("cohort", [], device="cuda")


TWO_THREADS = [Slot("a", "cpu", 2)] * 2


@pytest.mark.parametrize(
    ("engine", "slots", "placement"),
    [
        ("clients", TWO_THREADS, ("clients", 2, 2, (), None)),
        ("auto", TWO_THREADS, ("clients", 2, 2, (), None)),
        ("cohort", TWO_THREADS, ("cohort", 2, 2, ("cpu",), 5)),
        # Flower may put several clients on one GPU.
        ("clients", GPUS, ("clients", None, 2, (), None)),
        ("cohort", GPUS, ("cohort", 2, 4, ("cuda:0",), 0)),
        ("cohort", [*GPUS, Slot("c", "cuda:1", 1)], ("cohort", 3, None, ("cuda:0", "cuda:1"), 0)),
    ],
)
def test_a_run_says_which_workers_it_has(monkeypatch, simulated, engine, slots, placement):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(ray_worker, "find_slots", lambda _device, threads: slots[: threads + 1])
    monkeypatch.setattr(grid_module, "CohortGrid", Chosen)
    _, placed = start_engine(Config.from_flat({"engine": engine}), simulated)
    assert tuple(placed.facts.values()) == tuple(Placement(*placement).facts.values())
    assert json.loads(json.dumps(placed.facts)) == placed.facts


def test_what_only_flower_knows_is_not_guessed(monkeypatch, simulated):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(ray_worker, "find_slots", lambda _device, _threads: CPUS)
    config = Config.from_flat({"engine": "clients"})
    assert start_engine(config, simulated)[1] == Placement("clients")
    assert start_engine(config, Deployed())[1] == Placement("clients", simulated=False)


def test_a_server_without_cohorts_needs_neither_ray_nor_the_engine():
    code = """
import sys
import mops_fl.server_app
from mops_fl.config import Config
from mops_fl.engine.choose import start_engine
start_engine(Config.from_flat({}), object())
print([name for name in sys.modules if name in ("ray", "mops_fl.engine.pool")])
"""
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.strip() == "[]"
