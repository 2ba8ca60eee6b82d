"""Assigning every example to exactly one client, with a floor on a client's size."""

import contextlib
import io

import datasets
import numpy as np

from mops_fl.config import PartitionConfig
from mops_fl.data import Corpus
from mops_fl.errors import ConfigError
from mops_fl.seeding import derive, numpy_generator
from partitions.partitioners import BUILDERS


def assign(corpus: Corpus, config: PartitionConfig, seed: int) -> list[list[int]]:
    """The examples of every client.

    Returns:
        One sorted list of indices into ``corpus.examples`` a client; together they hold every
        index once. Each has at least `min-client-samples`: a client that the partitioner left
        below this floor is given examples of the largest one (of two equally large, the lower
        number). Natural owners keep what is theirs.

    Raises:
        ConfigError: there are too few examples or tasks for the partition, `num-clients` is not
            the number of owners, or an owner has fewer examples than the floor.
    """
    total, floor = len(corpus.examples), config.min_client_samples
    if total < config.num_clients * floor:
        raise ConfigError(
            f"{total} examples are too few for num-clients={config.num_clients} with "
            f"min-client-samples={floor}: at least {config.num_clients * floor} are needed"
        )
    clients = _partition(corpus, config, seed)
    if config.partition == "natural-id":
        _check_owners(corpus, config, clients)
    else:
        _raise_to_floor(clients, floor, numpy_generator(seed, "partition-floor"))
    return [sorted(client) for client in clients]


def _partition(corpus: Corpus, config: PartitionConfig, seed: int) -> list[list[int]]:
    """What flwr-datasets' partitioner gives to each client, from rows in shuffled order.

    The shuffle makes `iid` random and seeded, and takes any order of the data out of the others,
    which all cut the rows of a task consecutively.
    """
    order = numpy_generator(seed, "partition-order").permutation(len(corpus.examples)).tolist()
    rows = [corpus.examples[index] for index in order]
    tasks, owners = [row.task for row in rows], [row.owner for row in rows]
    names = tuple(sorted(set(tasks))), tuple(sorted(set(owners)))
    partitioner = BUILDERS[config.partition](config, *names, derive(seed, "partition"))
    partitioner.dataset = datasets.Dataset.from_dict(
        {"index": order, "task": tasks, "owner": owners}
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # NaturalIdPartitioner's progress bar
            parts = [partitioner.load_partition(client) for client in range(config.num_clients)]
    except ValueError as error:
        raise ConfigError(
            f"partition={config.partition} cannot be made of {len(order)} examples for "
            f"num-clients={config.num_clients}: {error}"
        ) from error
    return [list(part["index"]) for part in parts]


def _check_owners(corpus: Corpus, config: PartitionConfig, clients: list[list[int]]) -> None:
    small = [client for client in clients if len(client) < config.min_client_samples]
    if small:
        sizes = ", ".join(f"{corpus.examples[c[0]].owner} ({len(c)})" for c in small)
        raise ConfigError(
            f"partition-column={config.partition_column}: owners with fewer examples than "
            f"min-client-samples={config.min_client_samples}: {sizes}; lower min-client-samples "
            "or leave these owners out of the data"
        )


def _raise_to_floor(clients: list[list[int]], floor: int, generator: np.random.Generator) -> None:
    """Move drawn examples, one at a time from the largest client, until no client is below."""
    for client in clients:
        while len(client) < floor:
            largest = max(clients, key=len)
            client.append(largest.pop(generator.integers(len(largest))))
