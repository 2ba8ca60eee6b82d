"""One client's examples as a train and a test part."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mops_fl.seeding import numpy_generator


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
        indices: the client's examples, two or more.
        test_fraction: share to hold out, between 0 and 1.
        seed: the run's seed.
        client: number of the client (its partition id).
    """
    order = numpy_generator(seed, "split", client).permutation(indices).tolist()
    held_out = min(max(1, round(test_fraction * len(order))), len(order) - 1)
    return Share(train=tuple(sorted(order[held_out:])), test=tuple(sorted(order[:held_out])))
