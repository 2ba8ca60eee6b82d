"""Every kind of partition is a true one, with a floor, decided by the seed."""

import itertools
import time

import datasets
import pytest

from mops_fl.config import Config, PartitionConfig
from mops_fl.data import Corpus, Example
from mops_fl.errors import ConfigError
from mops_fl.seeding import derive, numpy_generator
from partitions import assign
from partitions.partitioners import BUILDERS

TASKS = tuple(f"task{number}" for number in range(7))


def config(kind: str = "dirichlet", **flat: object) -> PartitionConfig:
    keys = {key.replace("_", "-"): value for key, value in flat.items()}
    column = "user" if kind == "natural-id" else ""
    fixed = {"num-samples": 0, "partition": kind, "partition-column": column}
    return Config.from_flat({"active-clients": 1, **fixed, **keys}).partition


def corpus(number: int, tasks: tuple[str, ...] = TASKS, owners: int = 100) -> Corpus:
    """Tasks in turn, in blocks of owners: the data's order must not matter."""
    examples = tuple(
        Example(f"do {i}", "", f"done {i}", tasks[i % len(tasks)], f"owner{i * owners // number}")
        for i in range(number)
    )
    return Corpus(examples, tasks, {}, "")


def check(clients: list[list[int]], number: int, floor: int) -> None:
    assert sorted(itertools.chain.from_iterable(clients)) == list(range(number))
    assert all(client == sorted(client) for client in clients)
    assert min(map(len, clients)) >= floor


@pytest.mark.parametrize(
    ("kind", "alpha"),
    [
        *(("dirichlet", alpha) for alpha in (1e-6, 0.01, 0.1, 1.0, 1e6)),
        ("iid", 1.0),
        ("pathological", 1.0),
        ("natural-id", 1.0),
    ],
)
@pytest.mark.parametrize("number", [5000, 1000])
def test_a_true_partition_above_the_floor(
    kind: str, alpha: float, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    clients = assign(corpus(number), config(kind, alpha=alpha), seed=5)
    assert len(clients) == 100
    check(clients, number, floor=10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["dirichlet", "iid", "pathological"])
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (assign(corpus(1500), config(kind), seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def assigned_row_by_row(data: Corpus, settings: PartitionConfig, seed: int) -> list[list[int]]:
    """The same by flwr-datasets on the texts themselves, and a search for each moved row."""
    order = numpy_generator(seed, "partition-order").permutation(len(data.examples)).tolist()
    rows = [data.examples[index] for index in order]
    columns = {"task": [row.task for row in rows], "owner": [row.owner for row in rows]}
    names = [tuple(sorted(set(columns[column]))) for column in ("task", "owner")]
    partitioner = BUILDERS[settings.partition](settings, *names, derive(seed, "partition"))
    partitioner.dataset = datasets.Dataset.from_dict({"index": order, **columns})
    parts = [partitioner.load_partition(client) for client in range(settings.num_clients)]
    clients = [list(part["index"]) for part in parts]
    if settings.partition != "natural-id":
        generator = numpy_generator(seed, "partition-floor")
        for client in clients:
            while len(client) < settings.min_client_samples:
                largest = max(clients, key=len)
                client.append(largest.pop(generator.integers(len(largest))))
    return [sorted(client) for client in clients]


@pytest.mark.parametrize(
    ("kind", "alpha"),
    [
        *(("dirichlet", alpha) for alpha in (1e-6, 0.1, 1e6)),
        ("iid", 1.0),
        ("pathological", 1.0),
        ("natural-id", 1.0),
    ],
)
@pytest.mark.parametrize(("number", "clients"), [(2000, 40), (401, 40), (41, 8)])
def test_as_if_assigned_row_by_row(kind: str, alpha: float, number: int, clients: int) -> None:
    floor = 10 if number > 100 else 2
    settings = config(kind, alpha=alpha, num_clients=clients, min_client_samples=floor)
    data = corpus(number, tuple("zyx10 ab"), owners=clients)
    expected = assigned_row_by_row(data, settings, 3)
    assert assign(data, settings, 3) == expected


def test_many_clients_and_rows_in_seconds() -> None:
    """Ten thousand clients: neither a search nor a dataset for each of them."""
    data = corpus(200_000)
    start = time.monotonic()
    clients = assign(data, config(num_clients=10_000), seed=0)
    assert time.monotonic() - start < 60
    check(clients, 200_000, floor=10)


@pytest.mark.parametrize("kind", ["dirichlet", "iid", "pathological", "natural-id"])
def test_one_or_few_clients(kind: str) -> None:
    for clients in (1, 3) if kind in ("dirichlet", "iid") else (7,):
        settings = config(kind, num_clients=clients, min_client_samples=2)
        check(assign(corpus(40, owners=7), settings, seed=0), 40, floor=2)


def test_smaller_alpha_is_more_skewed_in_tasks_and_sizes() -> None:
    held, spread = [], []
    for alpha in (0.05, 1.0, 100.0):
        clients = assign(corpus(5000), config(alpha=alpha), seed=0)
        held.append(sum(len({i % 7 for i in client}) for client in clients) / 100)
        sizes = [len(client) for client in clients]
        spread.append(max(sizes) - min(sizes))
    assert held[0] < held[1] < held[2] == 7
    assert spread[0] > spread[1] > spread[2]


def test_the_repair_only_moves_what_is_missing() -> None:
    """With and without a floor: clients above it that are not the donors stay as they were."""
    low, high = (
        assign(corpus(5000), config(min_client_samples=floor), seed=0) for floor in (2, 10)
    )
    assert min(map(len, low)) < 10
    unchanged = sum(a == b for a, b in zip(low, high, strict=True))
    grown = [(a, b) for a, b in zip(low, high, strict=True) if len(a) < 10]
    assert unchanged > 50
    assert all(len(after) == 10 for _, after in grown)
    assert max(map(len, high)) > 150


def test_pathological_clients_hold_two_tasks() -> None:
    clients = assign(corpus(5000), config("pathological"), seed=0)
    assert {len({i % 7 for i in client}) for client in clients} == {2}


def test_iid_is_even_and_mixed() -> None:
    clients = assign(corpus(5000), config("iid"), seed=0)
    assert {len(client) for client in clients} == {50}
    assert all(len({i % 7 for i in client}) > 3 for client in clients)
    assert all(client != list(range(client[0], client[0] + 50)) for client in clients)


def test_natural_owners_stay_together() -> None:
    data = corpus(1000, owners=20)
    clients = assign(data, config("natural-id", num_clients=20), seed=0)
    names = [{data.examples[i].owner for i in client} for client in clients]
    assert all(len(name) == 1 for name in names)
    assert names == sorted(names, key=min)


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (
            corpus(999),
            config("iid"),
            r"999 examples are too few for num-clients=100 .*min-client-samples=10: at least 1000",
        ),
        (
            corpus(5000, owners=30),
            config("natural-id"),
            r"num-clients=100, but partition-column=user names 30 owners: set num-clients=30",
        ),
        (
            corpus(5000, tasks=("only",)),
            config("pathological"),
            r"num-clients=100 and 1 tasks: .*at least 2 tasks",
        ),
        (
            corpus(5000),
            config("pathological", num_clients=6),
            r"num-clients=6 and 7 tasks: .*as many clients as tasks",
        ),
        (
            corpus(200),
            config("pathological", min_client_samples=2, num_clients=100),
            r"partition=pathological cannot be made of 200 examples for num-clients=100: a task "
            r"has fewer .* \(the smallest, task4, has 28\): lower num-clients",
        ),
    ],
)
def test_impossible_partitions(data: Corpus, settings: PartitionConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(data, settings, seed=0)


def test_owner_below_the_floor_is_numbered() -> None:
    """By number: an owner's name may be a person's."""
    data = corpus(40, owners=2)
    few = tuple(Example("x", "", "y", "task0", "small") for _ in range(3))
    data = Corpus(data.examples + few, TASKS, {}, "")
    settings = config("natural-id", num_clients=3)
    with pytest.raises(
        ConfigError, match=r"partition-column=user: owners .*=10: client 2 \(3\), counted"
    ):
        assign(data, settings, seed=0)
