"""`mops-fl report`: one page of any runs."""

from pathlib import Path
from typing import Annotated

import typer

from mops_fl.cli.run import console


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="The page: .html.")],
) -> None:
    """Tell of any runs on one page that needs no network, from their result files."""
    from mops_fl.report.page import write_report

    write_report(runs, out)
    console.print(str(out.resolve()))
