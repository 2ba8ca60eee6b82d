"""Who holds which examples: every client's share, and the server's."""

import numpy as np

from mops_fl.config import Config
from mops_fl.data import Corpus, Share, split
from mops_fl.data.split import LEAST
from mops_fl.errors import ConfigError
from mops_fl.seeding import numpy_generator
from partitions.assignment import assign


def shares(corpus: Corpus, config: Config) -> list[Share]:
    """Every client's share of what is not the server's.

    The union of the test parts is the global test set. Examples of unseen tasks are shuffled by the
    seed and dealt out in turn, whatever the partition of the others.

    Raises:
        ConfigError: the partition cannot be made (see `assign`), or the server has no rows.
    """
    seed, number = config.seed, config.partition.num_clients
    rows = np.setdiff1d(corpus.trained, server_rows(corpus, config))
    clients = assign(corpus, config.partition, seed, rows)
    unseen = numpy_generator(seed, "unseen-tasks").permutation(corpus.unseen).tolist()
    return [
        split(indices, config.data, seed, client, unseen[client::number])
        for client, indices in enumerate(clients)
    ]


def own_share(corpus: Corpus, config: Config) -> Share:
    """The share of a client whose data are a corpus of its own: all of it.

    A single example is trained on, and nothing is held out.
    """
    examples, unseen = corpus.trained.tolist(), corpus.unseen.tolist()
    if len(examples) < LEAST:
        return Share(train=tuple(examples), test=(), unseen=tuple(unseen))
    return split(examples, config.data, config.seed, 0, unseen)


def server_rows(corpus: Corpus, config: Config) -> tuple[int, ...]:
    """The examples that the server pretrains on and no client holds, as sorted indices.

    `server-fraction` of each trained task, drawn by the seed: at least one, and `LEAST` are left;
    none of a task with fewer than three. They are held back whatever `pretrain-data` says, so that
    runs that differ in it alone are on the same rows. There are none where `server-fraction` is 0,
    or `server-data` holds the server's rows.

    Raises:
        ConfigError: no task has three, and `pretrain-data` is `server`.
    """
    if not config.data.server_fraction or config.data.server_data:
        return ()
    order = numpy_generator(config.seed, "server").permutation(corpus.trained)
    numbers = corpus.task_numbers[order]
    order = order[np.argsort(numbers, kind="stable")]
    ends = np.cumsum(np.bincount(numbers))[:-1]
    drawn: list[int] = []
    for rows in np.split(order, ends):
        wanted = max(1, round(config.data.server_fraction * len(rows)))
        drawn += rows[: max(0, min(wanted, len(rows) - LEAST))].tolist()
    if not drawn and config.prompts.pretrain_data == "server":
        raise ConfigError(
            f"pretrain-data=server: no task has the {LEAST + 1} examples of which the server could "
            "take one: name its rows in server-data, or set pretrain-data to pooled, own or none"
        )
    return tuple(sorted(drawn))
