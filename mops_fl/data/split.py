"""One client's examples as a train and a test part, and how many of each task it holds."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mops_fl.config import PartitionConfig
from mops_fl.data.examples import Example
from mops_fl.errors import DataError
from mops_fl.seeding import numpy_generator

LEAST = 2
"""Examples that a client needs: one to train on and one held out."""


@dataclass(frozen=True)
class Share:
    """One client's examples, as sorted indices into the corpus; no index is in both parts."""

    train: tuple[int, ...]
    test: tuple[int, ...]

    def without(self, indices: Collection[int]) -> "Share":
        """The same share less some examples."""
        parts = (self.train, self.test)
        return Share(*(tuple(i for i in part if i not in indices) for part in parts))


def split(indices: Sequence[int], test_fraction: float, seed: int, client: int) -> Share:
    """Shuffle a client's examples by the seed and hold `test_fraction` of them out.

    At least one example is held out and at least one is kept for training.

    Args:
        indices: the client's examples, `LEAST` or more.
        test_fraction: share to hold out, between 0 and 1.
        seed: the run's seed.
        client: number of the client (its partition id).

    Raises:
        DataError: there are fewer.
    """
    if len(indices) < LEAST:
        raise DataError(
            f"client {client} has {len(indices)} usable rows, but needs at least {LEAST}: one to "
            "train on and one held out"
        )
    order = numpy_generator(seed, "split", client).permutation(indices).tolist()
    held_out = min(max(1, round(test_fraction * len(order))), len(order) - 1)
    return Share(train=tuple(sorted(order[held_out:])), test=tuple(sorted(order[:held_out])))


def evaluated(share: Share, eval_samples: int, seed: int, client: int) -> tuple[int, ...]:
    """A client's held-out examples that are evaluated: a sorted sample, the same in every round.

    Args:
        share: the client's.
        eval_samples: how many at most; 0 for all.
        seed: the run's seed.
        client: number of the client (its partition id).
    """
    if not 0 < eval_samples < len(share.test):
        return share.test
    generator = numpy_generator(seed, "eval", client)
    return tuple(sorted(generator.choice(share.test, eval_samples, replace=False).tolist()))


@dataclass(frozen=True)
class Holding:
    """What one client holds: numbers of examples by task, in expert order, zeros included."""

    train: dict[str, int]
    test: dict[str, int]


def holding(examples: Sequence[Example], tasks: Sequence[str], share: Share) -> Holding:
    """Count a client's examples of each of these tasks."""

    def count(part: tuple[int, ...]) -> dict[str, int]:
        counted = Counter(examples[index].task for index in part)
        return {task: counted[task] for task in tasks}

    return Holding(count(share.train), count(share.test))


def unseen_partitions(config: PartitionConfig, seed: int) -> frozenset[int]:
    """Clients that never train."""
    return frozenset()
