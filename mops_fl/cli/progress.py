"""Showing how far a run is.

The ServerApp keeps `progress.json` up to date, by clients; processes at work on this machine say
what they are doing, by steps.
"""

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

from mops_fl.activity import Activity, activities, listening
from mops_fl.cli.tracking import tracking
from mops_fl.files import version
from mops_fl.flower.launch import Watch

FILE = "progress.json"
"""The file in a run folder."""

PLAIN_LINES = 20
"""Parts of one phase, or of one activity, that get a line where there is no terminal."""


@dataclass(frozen=True)
class State:
    """What `progress.json` says, and what processes say."""

    phase: str = "starting"
    round: int = 0
    rounds: int = 0
    done: int = 0
    of: int = 0
    train_loss: float | None = None
    perplexity: float | None = None
    seconds_left: float | None = None
    activities: tuple[Activity, ...] = field(default=(), metadata={"written": False})

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
    def for_all(self) -> Activity | None:
        """What is done on behalf of all clients, such as pretraining."""
        return next((activity for activity in self.activities if not activity.clients), None)

    @property
    def work(self) -> str:
        """What is being done, in steps or examples; those of several processes are added up."""
        if self.for_all:
            return str(self.for_all)
        kinds = dict.fromkeys(activity.what for activity in self.activities)
        return ", ".join(
            _added_up([activity for activity in self.activities if activity.what == kind])
            for kind in kinds
        )

    @property
    def share(self) -> float:
        """The part of the phase that is done; clients under way count by their steps."""
        if self.for_all:
            return self.for_all.share
        under_way = sum(activity.clients * activity.share for activity in self.activities)
        return min((self.done + under_way) / self.of, 1.0) if self.of else 0.0

    @property
    def figures(self) -> str:
        """Loss, perplexity and time left, as far as they are known."""
        parts = []
        if self.train_loss is not None:
            parts.append(f"train loss {self.train_loss:.3f}")
        if self.perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.4g}")
        if self.seconds_left is not None:
            parts.append(f"{clock(self.seconds_left)} left")
        return ", ".join(parts)

    @property
    def stage(self) -> tuple:
        """Changes where a line without a terminal is due; within one, `share` decides."""
        return self.phase, self.round, self.perplexity, self.for_all and self.for_all.what

    @property
    def line(self) -> str:
        """All of it."""
        parts = (self.heading, self.clients, self.work, self.figures)
        return ", ".join(part for part in parts if part)


class Lines:
    """Plain lines, for where there is no terminal: some twenty of each kind, none twice."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[tuple, int] = {}

    def show(self, kind: tuple, share: float, line: str) -> None:
        """Print a line where more is done of its kind than the last one said."""
        part = int(PLAIN_LINES * share)
        if part > self._shown.get(kind, -1):
            self._shown[kind] = part
            self._console.print(line)
            self._console.file.flush()


@contextlib.contextmanager
def showing(what: str, console: Console) -> Iterator[None]:
    """Show what this process itself is doing while the block lasts, and how long it took."""
    lines = Lines(console)
    with console.status(what) as status:

        def show(activity: Activity | None) -> None:
            if activity is None:
                status.update(what)
            elif activity.seconds is not None:
                console.print(f"{activity.what} took {activity.seconds:.0f} s")
            elif console.is_terminal:
                status.update(str(activity))
            else:
                lines.show((activity.what,), activity.share, str(activity))

        with listening(show):
            yield


@contextlib.contextmanager
def watching(folder: Path, console: Console, trackers: Sequence[str] = ()) -> Iterator[Watch]:
    """A function that shows the state of the run in `folder` whenever it is called.

    On a terminal it keeps one live line; elsewhere it prints a line when something changed. What is
    written from now on also goes to `trackers`, names of `mops_fl.run.trackers.TRACKERS`.
    """
    before = version(folder / FILE)
    with _shown(console) as show, tracking(folder, console, trackers, carried_on=True) as track:

        def watch(doing: Path, note: str) -> None:
            track()
            show(_state(folder, doing, before, note))

        yield watch


def live_bar(console: Console) -> Progress:
    """A line with the phase of a run, as `bar_values` fills it."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        # Wraps where the terminal is narrow.
        TextColumn("{task.fields[text]}", table_column=Column()),
        console=console,
        transient=True,
    )


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Callable[[State], None]]:
    if not console.is_terminal:
        lines = Lines(console)
        yield lambda state: lines.show(state.stage, state.share, state.line)
        return
    with live_bar(console) as bar:
        task = bar.add_task(State().heading, total=None, text="")
        yield lambda state: bar.update(task, **bar_values(state))


def _state(folder: Path, doing: Path, before: tuple[int, int] | None, note: str) -> State:
    """The state, as far as it was written by this run and not by one that it carries on.

    A note takes the place of the phase.

    Args:
        folder: of the run.
        doing: where processes say what they are doing.
        before: the version of the file when the run started.
        note: may be empty.
    """
    if note:
        return State(phase=note)
    if version(folder / FILE) == before or not (found := written_state(folder)):
        return State()
    return replace(found, activities=tuple(activities(doing)))


def written_state(folder: Path) -> State | None:
    """What `progress.json` of a run folder says; None where it says nothing yet."""
    names = [item.name for item in fields(State) if item.metadata.get("written", True)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        written = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return State(**{name: written[name] for name in names})
    return None


def _added_up(same: list[Activity]) -> str:
    """Activities of one kind as one, and whose they are where they are not of one client."""
    clients = sum(activity.clients for activity in same)
    done, of = sum(activity.done for activity in same), sum(activity.of for activity in same)
    text = str(Activity(same[0].what, done, of))
    if len(same) > 1:
        return f"{text} ({clients} clients in {len(same)} processes)"
    return f"{text} ({clients} clients together)" if clients > 1 else text


def bar_values(state: State) -> dict:
    """What `Progress.update` takes for a task of `live_bar`."""
    return {
        "description": state.heading,
        "total": 1.0 if state.of else None,
        "completed": state.share,
        "text": "  ".join(part for part in (state.clients, state.work, state.figures) if part),
    }


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
