"""Each client's examples as a train and a test part."""

from mops_fl.config import DataConfig, PartitionConfig
from mops_fl.data import Corpus, Share, split
from partitions.assignment import assign


def shares(corpus: Corpus, data: DataConfig, config: PartitionConfig, seed: int) -> list[Share]:
    """Every client's share; the union of the test parts is the global test set.

    Raises:
        ConfigError: the partition cannot be made (see `assign`).
    """
    clients = assign(corpus, config, seed)
    return [
        split(indices, data.test_fraction, seed, client) for client, indices in enumerate(clients)
    ]
