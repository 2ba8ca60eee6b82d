"""The kinds of partition, each a builder of one of flwr-datasets' partitioners."""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets
import numpy as np
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
)

from mops_fl.config import PartitionConfig
from mops_fl.errors import ConfigError

TASKS_PER_CLIENT = 2
"""Tasks that a client of the pathological partition holds (McMahan et al. 2017: two classes)."""

Builder = Callable[[PartitionConfig, tuple[str, ...], tuple[str, ...], int], Partitioner]
"""Builds from the configuration, the tasks and the owners that have examples, and a seed."""


class _Positions(datasets.Dataset):
    """A dataset whose parts are plain lists of positions: ten thousand are made in no time."""

    def __getitem__(self, key: Any) -> Any:
        """A column as a whole list, not one that reads a row at a time."""
        found = super().__getitem__(key)
        return found[:] if isinstance(key, str) else found

    def select(self, indices: Iterable[int], **_: Any) -> list[int]:  # type: ignore[override]
        """The positions themselves."""
        return list(indices)


def parts_of(
    columns: Mapping[str, np.ndarray],
    config: PartitionConfig,
    tasks: tuple[str, ...],
    owners: tuple[str, ...],
    seed: int,
) -> list[list[int]]:
    """The positions of every client.

    Args:
        columns: each row's ``task`` and ``owner``, as numbers.
        config: the partition.
        tasks: that have rows, by their numbers.
        owners: that have rows, by their numbers.
        seed: of the partitioner.

    Raises:
        ValueError: a task has fewer rows than clients that would hold it.
        ConfigError: these tasks or owners do not fit the partition.
    """
    partitioner = BUILDERS[config.partition](config, tasks, owners, seed)
    partitioner.dataset = _Positions.from_dict(dict(columns))
    with contextlib.redirect_stderr(io.StringIO()):  # NaturalIdPartitioner's progress bar
        return [partitioner.load_partition(client) for client in range(config.num_clients)]


def _dirichlet(
    config: PartitionConfig, _tasks: tuple[str, ...], _owners: tuple[str, ...], seed: int
) -> Partitioner:
    """Each task's examples go to clients in proportions drawn from Dirichlet(alpha)."""
    return DirichletPartitioner(
        num_partitions=config.num_clients,
        partition_by="task",
        alpha=config.alpha,
        min_partition_size=0,
        self_balancing=False,
        seed=seed,
    )


def _iid(
    config: PartitionConfig, _tasks: tuple[str, ...], _owners: tuple[str, ...], _seed: int
) -> Partitioner:
    """Consecutive rows in equal parts: the caller shuffles the rows."""
    return IidPartitioner(num_partitions=config.num_clients)


def _pathological(
    config: PartitionConfig, tasks: tuple[str, ...], _owners: tuple[str, ...], seed: int
) -> Partitioner:
    """Two tasks a client: the first in turn, so that every task has a client, the other drawn."""
    if not TASKS_PER_CLIENT <= len(tasks) <= config.num_clients:
        raise ConfigError(
            f"partition=pathological with num-clients={config.num_clients} and {len(tasks)} tasks: "
            f"every client holds {TASKS_PER_CLIENT} tasks and every task needs a client, so at "
            f"least {TASKS_PER_CLIENT} tasks and as many clients as tasks are needed"
        )
    return PathologicalPartitioner(
        num_partitions=config.num_clients,
        partition_by="task",
        num_classes_per_partition=TASKS_PER_CLIENT,
        class_assignment_mode="first-deterministic",
        seed=seed,
    )


def _natural_id(
    config: PartitionConfig, _tasks: tuple[str, ...], owners: tuple[str, ...], _seed: int
) -> Partitioner:
    """One client an owner, in the owners' alphabetical order."""
    if len(owners) != config.num_clients:
        raise ConfigError(
            f"num-clients={config.num_clients}, but partition-column={config.partition_column} "
            f"names {len(owners)} owners: set num-clients={len(owners)}"
        )
    return NaturalIdPartitioner(partition_by="owner")


BUILDERS: dict[str, Builder] = {
    "dirichlet": _dirichlet,
    "iid": _iid,
    "pathological": _pathological,
    "natural-id": _natural_id,
}
"""Value of `partition` → builder."""
