"""Assigning examples, each to exactly one client, with a floor on a client's size."""

import heapq
from collections.abc import Sequence

import numpy as np

from mops_fl.config import PartitionConfig
from mops_fl.data import Corpus, Example
from mops_fl.data.examples import listed
from mops_fl.errors import ConfigError
from mops_fl.seeding import derive, numpy_generator


def assign(
    corpus: Corpus, config: PartitionConfig, seed: int, rows: np.ndarray | None = None
) -> list[list[int]]:
    """The examples of every client.

    Args:
        corpus: all examples.
        config: the partition.
        seed: the run's seed.
        rows: sorted indices of the examples that are assigned; all by default.

    Returns:
        One sorted list of indices into ``corpus.examples`` a client; together they hold each of
        `rows` once. Each has at least `min-client-samples`: a client that the partitioner left
        below this floor is given examples of the largest one (of two equally large, the lower
        number). Natural owners keep what is theirs.

    Raises:
        ConfigError: there are too few examples or tasks for the partition, `num-clients` is not
            the number of owners, or an owner has fewer examples than the floor.
    """
    if rows is None:
        rows = np.arange(len(corpus.examples))
    total, floor = len(rows), config.min_client_samples
    if total < config.num_clients * floor:
        apart = len(corpus.examples) - total
        beside = f" (beside {apart} of the server and of unseen tasks)" if apart else ""
        raise ConfigError(
            f"{total} examples{beside} are too few for num-clients={config.num_clients} with "
            f"min-client-samples={floor}: at least {config.num_clients * floor} are needed: "
            "lower num-clients or min-client-samples"
        )
    clients = _partition([corpus.examples[row] for row in rows], config, seed)
    if config.partition == "natural-id":
        _check_owners(config, clients)
    else:
        _raise_to_floor(clients, floor, numpy_generator(seed, "partition-floor"))
    return [np.sort(rows[client]).tolist() for client in clients]


def _partition(examples: Sequence[Example], config: PartitionConfig, seed: int) -> list[list[int]]:
    """What flwr-datasets' partitioner gives to each client, from rows in shuffled order.

    The shuffle makes `iid` random and seeded, and takes any order of the data out of the others,
    which all cut the rows of a task consecutively. The partitioner sees tasks and owners as
    numbers, in the order of their names.
    """
    order = numpy_generator(seed, "partition-order").permutation(len(examples))
    tasks, task_numbers = _numbered([example.task for example in examples])
    owners, owner_numbers = _numbered([example.owner for example in examples])
    # here, because a client with data of its own needs none and they take seconds to import
    from partitions.partitioners import parts_of

    columns = {"task": task_numbers[order], "owner": owner_numbers[order]}
    try:
        parts = parts_of(columns, config, tasks, owners, derive(seed, "partition"))
    except ValueError as error:
        counts = np.bincount(task_numbers)
        smallest = int(counts.argmin())
        raise ConfigError(
            f"partition={config.partition} cannot be made of {len(order)} examples for "
            f"num-clients={config.num_clients}: a task has fewer examples than clients that would "
            f"hold it (the smallest, {tasks[smallest]}, has {counts[smallest]}): lower num-clients "
            "or leave small tasks out of tasks"
        ) from error
    return [order[part].tolist() for part in parts]


def _numbered(names: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different names, sorted, and each name's number among them."""
    different = tuple(sorted(set(names)))
    numbers = {name: number for number, name in enumerate(different)}
    return different, np.array([numbers[name] for name in names])


def _check_owners(config: PartitionConfig, clients: list[list[int]]) -> None:
    small = [
        number for number, client in enumerate(clients) if len(client) < config.min_client_samples
    ]
    if small:
        sizes = listed([f"client {number} ({len(clients[number])})" for number in small])
        raise ConfigError(
            f"partition-column={config.partition_column}: owners with fewer examples than "
            f"min-client-samples={config.min_client_samples}: {sizes}, counted from 0 in the order "
            "of their names; lower min-client-samples or leave these owners out of the data"
        )


def _raise_to_floor(clients: list[list[int]], floor: int, generator: np.random.Generator) -> None:
    """Move drawn examples, one at a time from the largest client, until no client is below.

    Only clients above the floor give: while one is below it, the mean is not, so that the largest
    is above.
    """
    donors = [
        (-len(client), number) for number, client in enumerate(clients) if len(client) > floor
    ]
    heapq.heapify(donors)
    for client in clients:
        while len(client) < floor:
            size, number = donors[0]
            largest = clients[number]
            client.append(largest.pop(generator.integers(len(largest))))
            heapq.heapreplace(donors, (size + 1, number))
