"""Passing a run on to TensorBoard, wandb or trackio: the options, and doing it while it goes on."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mops_fl.files import version

TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write events into the run folder, below tensorboard."),
]
Wandb = Annotated[
    bool,
    typer.Option(
        "--wandb", help="Log to wandb, else to trackio; offline unless WANDB_MODE is set."
    ),
]


def asked_for(*, tensorboard: bool, wandb: bool) -> tuple[str, ...]:
    """The trackers that options ask for, names of `mops_fl.run.trackers.TRACKERS`.

    Raises:
        ConfigError: the package of one is missing.
    """
    names = (("tensorboard", tensorboard), ("wandb", wandb))
    found = tuple(name for name, asked in names if asked)
    if found:
        from mops_fl.run.trackers import check_trackers

        check_trackers(found)
    return found


@contextlib.contextmanager
def tracking(
    folder: Path, console: Console, trackers: Sequence[str], *, carried_on: bool = False
) -> Iterator[Callable[[], None]]:
    """A function that passes the new rounds of a run on to trackers whenever it is called.

    Args:
        folder: of the run.
        console: for what goes wrong, which is a warning.
        trackers: names of `mops_fl.run.trackers.TRACKERS`; nothing is done without any.
        carried_on: whether the run is about to begin, so that what is there is an earlier part.
    """
    if not trackers:
        yield lambda: None
        return
    from mops_fl.run.trackers import Following

    def warn(text: str) -> None:
        console.print(f"warning: {text}", style="bold yellow")

    before = version(folder / "run.json") if carried_on else None
    following = Following(folder, trackers, warn, before)
    try:
        yield following.step
    finally:
        following.close()
