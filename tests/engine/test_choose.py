"""Which engine a run takes, and where its workers go."""

import pytest
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from mops_fl.config import Config
from mops_fl.engine import choose, engine_grid
from mops_fl.engine.ray_worker import Slot, slots_of
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
    slots = slots_of(NODES, device)
    assert [(slot.node, slot.device, slot.threads) for slot in slots] == expected


def test_auto_takes_cpus_where_no_machine_has_a_gpu():
    assert {slot.device for slot in slots_of({"a": {"CPU": 2.0}}, "auto")} == {"cpu"}


class Deployed:
    """Stands for Flower's grid of a deployment."""


class Chosen:
    """What `CohortGrid` would be made of."""

    def __init__(self, _grid, _config, starts, cohort_size) -> None:
        self.workers, self.cohort_size = len(starts), cohort_size


@pytest.fixture
def choice(monkeypatch):
    """The grid for an engine, the slots that Ray has, and further values."""

    def choice(engine: str, slots, grid=None, **flat):
        monkeypatch.setattr(choose, "find_slots", lambda _device: slots)
        monkeypatch.setattr(choose, "CohortGrid", Chosen)
        config = Config.from_flat({"engine": engine, **flat})
        return engine_grid(config, grid or simulated)

    simulated: Grid = InMemoryGrid.__new__(InMemoryGrid)
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
