"""`mops-fl show`: one run as tables."""

from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli import tables
from mops_fl.cli.run import console


def show(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Show a run: its facts, perplexity per round, task and client, work and bytes."""
    from mops_fl.run.results import Replicates, Run

    read = Run.read(run)
    console.print(tables.facts(read))
    console.print(tables.per_task(read))
    console.print(tables.work(read))
    for table in tables.results([Replicates(read.noted(read.method), (read,))]):
        console.print(table)
