"""Who holds what: a client × task table, and its picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from mops_fl.config import PartitionConfig
from mops_fl.data import Corpus, Share, holding
from mops_fl.files import replacing

TRAIN, TEST = "#2f5d8a", "#e0902f"
SHADES = LinearSegmentedColormap.from_list("share", ["#ffffff", "#9dbfdd", "#2f5d8a", "#12263f"])
NUMBERED = 40
"""Clients that still fit as numbers on the axis."""


def title_of(config: PartitionConfig) -> str:
    """One line for a title, such as ``dirichlet over tasks, alpha = 0.1, 100 clients``."""
    details = {
        "dirichlet": f"dirichlet over tasks, alpha = {config.alpha:g}",
        "natural-id": f"natural-id by {config.partition_column}",
    }
    return f"{details.get(config.partition, config.partition)}, {config.num_clients} clients"


def table(corpus: Corpus, shares: Sequence[Share]) -> pd.DataFrame:
    """Numbers of examples, tidy: columns `partition, task, train, test`.

    There is a row for every client and every task of the corpus, in expert order, zeros included.
    """
    rows = []
    for partition, share in enumerate(shares):
        held = holding(corpus.examples, corpus.tasks, share)
        rows += [(partition, task, held.train[task], held.test[task]) for task in corpus.tasks]
    return pd.DataFrame(rows, columns=["partition", "task", "train", "test"])


def draw(table: pd.DataFrame, path: Path, title: str = "Who holds what") -> None:
    """Draw `table`: each client's size above its mixture of tasks.

    Clients stand in groups by the task that they hold most of, the largest client of a group first.

    Args:
        table: as `table` gives it.
        path: PNG file, replaced whole.
        title: names the partition; `title_of` gives one.

    Raises:
        RunError: the file cannot be written.
    """
    tasks = list(dict.fromkeys(table["task"]))
    held = table.assign(examples=table["train"] + table["test"])
    counts = held.pivot(index="partition", columns="task", values="examples")[tasks]
    sizes = held.groupby("partition")[["train", "test"]].sum()
    main = counts.to_numpy().argmax(axis=1)
    order = np.lexsort((-counts.sum(axis=1).to_numpy(), main))

    figure = Figure(figsize=(9, 2.3 + 0.32 * max(len(tasks), 5)), dpi=200, layout="constrained")
    top, mixture = figure.subplots(
        2, 1, sharex=True, height_ratios=[1.6, 0.32 * max(len(tasks), 5)]
    )
    figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)
    _draw_sizes(top, sizes.iloc[order])
    _draw_mixture(mixture, counts.iloc[order])
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_sizes(axes: Axes, sizes: pd.DataFrame) -> None:
    positions = np.arange(len(sizes))
    axes.bar(positions, sizes["train"], width=0.85, color=TRAIN, label="train")
    axes.bar(positions, sizes["test"], width=0.85, bottom=sizes["train"], color=TEST, label="test")
    axes.set_ylabel("examples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    total = sizes.sum(axis=1)
    axes.set_title(
        f"{total.sum():,} examples; {total.min():,} to {total.max():,} a client, "
        f"median {total.median():,.0f}",
        fontsize=9,
        loc="left",
    )


def _draw_mixture(axes: Axes, counts: pd.DataFrame) -> None:
    mixture = counts.div(counts.sum(axis=1), axis=0).to_numpy().T
    image = axes.imshow(mixture, aspect="auto", cmap=SHADES, vmin=0, vmax=1, interpolation="none")
    names = [_shorten(task) for task in counts.columns]
    axes.set_yticks(range(counts.shape[1]), names, fontsize=9, parse_math=False)
    axes.set_yticks(np.arange(counts.shape[1] - 1) + 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="#cccccc", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    if len(counts) <= NUMBERED:
        axes.set_xticks(range(len(counts)), [str(client) for client in counts.index], fontsize=8)
    else:
        axes.set_xticks([])
    axes.set_xlabel("clients, grouped by the task they hold most of")
    axes.figure.colorbar(image, ax=axes, label="share of the client", pad=0.01, ticks=[0, 0.5, 1])


def _shorten(task: str, limit: int = 30) -> str:
    return task if len(task) <= limit else f"{task[: limit - 1]}…"
