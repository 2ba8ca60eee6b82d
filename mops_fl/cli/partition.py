"""`mops-fl partition`: who gets what, without training."""

from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import options
from mops_fl.cli.run import console, say_data
from mops_fl.labels import one_line


def partition(
    values: options.Values = None,
    config_file: options.ConfigFile = None,
    clients: options.Clients = None,
    out: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("partition.png"),
) -> None:
    """Print and draw which client holds which examples under a configuration."""
    config = options.configure(config_file, clients, values)

    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from mops_fl.data import load_corpus, unseen_partitions
    from partitions import report, server_rows, shares

    corpus = load_corpus(config.data, config.seed, config.partition.partition_column)
    say_data(corpus)
    parts = shares(corpus, config)
    held = report.table(corpus, parts)
    title = report.title_of(config.partition)
    totals = held.groupby("partition")[["train", "test"]].sum()
    counts = held.assign(examples=held["train"] + held["test"]).pivot(
        index="partition", columns="task", values="examples"
    )[list(corpus.tasks)]
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in ("client", *map(str, range(len(corpus.tasks))), "train", "test"):
        table.add_column(heading, justify="right")
    unseen = unseen_partitions(config.partition, config.seed)
    for client, row in counts.join(totals).iterrows():
        table.add_row(f"{client}{' *' * (client in unseen)}", *map(str, row))
    table.add_section()
    table.add_row("all", *map(str, counts.join(totals).sum()))
    console.print(table)
    tasks = ", ".join(f"{i} {task}" for i, task in enumerate(corpus.tasks))
    console.print(f"tasks: {tasks}")
    if corpus.unseen_tasks:
        console.print(f"unseen tasks, only evaluated: {', '.join(corpus.unseen_tasks)}")
    if unseen:
        console.print(f"* {len(unseen)} unseen clients, which never train")
    if validation := sum(len(share.validation) for share in parts):
        console.print(f"{validation:,} rows beside train and test are for validation")
    if server := server_rows(corpus, config):
        console.print(f"{len(server):,} rows are the server's, to pretrain on")
    report.draw(held, out, one_line(title, limit=72))
    console.print(str(out.resolve()))
