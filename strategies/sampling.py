"""Who trains in a round, decided by the seed alone."""

from collections.abc import Iterable

from mops_fl.seeding import python_generator


def sample_partitions(
    partitions: Iterable[int], active: int, seed: int, server_round: int
) -> list[int]:
    """The active clients of a round, as sorted partition ids.

    Flower's own sampling draws from a global generator over node ids that are new in every run;
    this one draws from the run's seed over partition ids, so that a seed fixes who trains.
    """
    generator = python_generator(seed, "sampling", server_round)
    return sorted(generator.sample(sorted(partitions), active))
