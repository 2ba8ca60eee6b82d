"""`mops-fl plot`: overlay runs."""

from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli.run import console


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="The figure: .png, .pdf or .svg.")],
    per_task: Annotated[bool, typer.Option("--per-task", help="One panel for each task.")] = False,
) -> None:
    """Overlay the perplexity per round of any runs, from their result files."""
    from mops_fl.run.plots import perplexity_figure

    perplexity_figure(runs, out, per_task)
    console.print(str(out.resolve()))
