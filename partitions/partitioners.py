"""The kinds of partition, each a builder of one of flwr-datasets' partitioners."""

from collections.abc import Callable

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
