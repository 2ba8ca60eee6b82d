"""One client's examples in parts, how many of each task it holds, and which clients never train."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mops_fl.config import Config, DataConfig, PartitionConfig
from mops_fl.data.examples import Example
from mops_fl.errors import DataError
from mops_fl.seeding import numpy_generator

LEAST = 2
"""Examples that a client needs: one to train on and one held out."""


@dataclass(frozen=True)
class Share:
    """One client's examples, as sorted indices into the corpus; no index is in two parts."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    validation: tuple[int, ...] = ()
    """Held out to choose by: neither trained on nor in the test set."""
    unseen: tuple[int, ...] = ()
    """Examples of unseen tasks, all held out."""

    def without(self, indices: Collection[int]) -> "Share":
        """The same share less some examples."""
        parts = self.train, self.test, self.validation, self.unseen
        return Share(*(tuple(i for i in part if i not in indices) for part in parts))


def split(
    indices: Sequence[int],
    data: DataConfig,
    seed: int,
    client: int,
    unseen: Sequence[int] = (),
) -> Share:
    """Shuffle a client's examples by the seed; the first are its test part, the next validation.

    At least one example is in the test part and at least one is kept for training; at least one is
    for validation where a fraction is asked for and three are there.

    Args:
        indices: the client's examples of trained tasks, `LEAST` or more.
        data: the fractions.
        seed: the run's seed.
        client: number of the client (its partition id).
        unseen: its examples of unseen tasks.

    Raises:
        DataError: there are fewer.
    """
    if len(indices) < LEAST:
        raise DataError(
            f"client {client} has {len(indices)} usable rows, but needs at least {LEAST}: one to "
            "train on and one held out"
        )
    order = numpy_generator(seed, "split", client).permutation(indices).tolist()
    test = _portion(data.test_fraction, len(order), len(order) - 1)
    validation = _portion(data.validation_fraction, len(order), len(order) - test - 1)
    parts = order[test + validation :], order[:test], order[test : test + validation], unseen
    return Share(*(tuple(sorted(part)) for part in parts))


def _portion(fraction: float, of: int, most: int) -> int:
    """A fraction of a number, at least 1 if it is not 0, and not more than `most`."""
    return min(max(1, round(fraction * of)), most) if fraction else 0


def evaluated(share: Share, eval_samples: int, seed: int, client: int) -> Share:
    """A client's held-out examples that are evaluated: a sample, the same in every round.

    Args:
        share: the client's.
        eval_samples: how many of each part at most; 0 for all.
        seed: the run's seed.
        client: number of the client (its partition id).

    Returns:
        The samples of the parts, each by a stream of its own; nothing to train on.
    """

    def sample(part: tuple[int, ...], *purpose: str) -> tuple[int, ...]:
        if not 0 < eval_samples < len(part):
            return part
        generator = numpy_generator(seed, *purpose, client)
        return tuple(sorted(generator.choice(part, eval_samples, replace=False).tolist()))

    return Share(
        train=(),
        test=sample(share.test, "eval"),
        validation=sample(share.validation, "eval", "validation"),
        unseen=sample(share.unseen, "eval", "unseen"),
    )


def unseen_partitions(config: PartitionConfig, seed: int) -> frozenset[int]:
    """The partition ids of the clients that never train: drawn by the seed, whatever they hold."""
    generator = numpy_generator(seed, "unseen-clients")
    drawn = generator.choice(config.num_clients, size=config.num_unseen, replace=False)
    return frozenset(drawn.tolist())


def malicious_partitions(config: Config) -> frozenset[int]:
    """The partition ids of the clients that attack: drawn by the seed from those that train."""
    unseen = unseen_partitions(config.partition, config.seed)
    seen = [
        partition for partition in range(config.partition.num_clients) if partition not in unseen
    ]
    generator = numpy_generator(config.seed, "malicious-clients")
    count = config.aggregation.malicious_clients
    return frozenset(generator.choice(seen, size=count, replace=False).tolist())


@dataclass(frozen=True)
class Holding:
    """What one client holds: numbers of examples by task, in expert order, zeros included."""

    train: dict[str, int]
    test: dict[str, int]
    """Of unseen tasks: all that it holds."""
    validation: dict[str, int]


def holding(examples: Sequence[Example], tasks: Sequence[str], share: Share) -> Holding:
    """Count a client's examples of each of these tasks."""

    def count(part: tuple[int, ...]) -> dict[str, int]:
        counted = Counter(examples[index].task for index in part)
        return {task: counted[task] for task in tasks}

    return Holding(count(share.train), count(share.test + share.unseen), count(share.validation))
