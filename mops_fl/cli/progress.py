"""Showing how far a run is, from the `progress.json` that its ServerApp keeps up to date."""

import contextlib
import datetime
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

from mops_fl.flower.launch import Watch

PLAIN_LINES = 20
"""Lines printed for the clients of one phase at most, where there is no terminal."""


@dataclass(frozen=True)
class State:
    """What `progress.json` says."""

    phase: str = "starting"
    round: int = 0
    rounds: int = 0
    done: int = 0
    of: int = 0
    train_loss: float | None = None
    perplexity: float | None = None
    seconds_left: float | None = None

    @property
    def heading(self) -> str:
        """Phase and round."""
        if self.phase in ("training", "evaluating"):
            return f"round {self.round}/{self.rounds} {self.phase}"
        if self.phase == "starting":
            return "asking the clients" if self.of else "starting Flower and Ray"
        return self.phase

    @property
    def clients(self) -> str:
        """How many clients of the phase are done; pretraining is the work of one."""
        return f"{self.done}/{self.of} clients" if self.of > 1 else ""

    @property
    def figures(self) -> str:
        """Loss, perplexity and time left, as far as they are known."""
        parts = []
        if self.train_loss is not None:
            parts.append(f"train loss {self.train_loss:.3f}")
        if self.perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.4g}")
        if self.seconds_left is not None:
            parts.append(f"{_clock(self.seconds_left)} left")
        return ", ".join(parts)

    @property
    def step(self) -> tuple:
        """Changes where a line without a terminal is worth printing."""
        part = max(1, math.ceil(self.of / PLAIN_LINES))
        return self.phase, self.round, self.done // part, self.perplexity


@contextlib.contextmanager
def watching(folder: Path, console: Console) -> Iterator[Watch]:
    """A function that shows the state of the run in `folder` whenever it is called.

    On a terminal it keeps one live line; elsewhere it prints a line when something changed.
    """
    started = time.time()
    if not console.is_terminal:
        shown: list[tuple] = []
        yield lambda note: _print_line(_read(folder, started, note), shown, console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        # Wraps where the terminal is narrow.
        TextColumn("{task.fields[text]}", table_column=Column()),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(State().heading, total=None, text="")
        yield lambda note: bar.update(task, **_bar(_read(folder, started, note)))


def _read(folder: Path, since: float, note: str) -> State:
    """The state, as far as it was written by this run and not by one that it carries on.

    A note takes the place of the phase.
    """
    if note:
        return State(phase=note)
    path = folder / "progress.json"
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_mtime >= since:
            written = json.loads(path.read_text(encoding="utf-8"))
            return State(**{item.name: written[item.name] for item in fields(State)})
    return State()


def _print_line(state: State, shown: list[tuple], console: Console) -> None:
    if shown and shown[-1] == state.step:
        return
    shown[:] = [state.step]
    parts = (state.heading, state.clients, state.figures)
    console.print(", ".join(part for part in parts if part))
    console.file.flush()


def _bar(state: State) -> dict:
    return {
        "description": state.heading,
        "total": state.of or None,
        "completed": state.done,
        "text": "  ".join(part for part in (state.clients, state.figures) if part),
    }


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
