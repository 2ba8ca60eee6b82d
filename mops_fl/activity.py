"""What a process is doing, told to whoever shows it.

Work that takes long says so with `doing`. The launcher of a simulation names a folder in
`FOLDER_VARIABLE`, where each process at work keeps a file; a command that works in its own process
listens to itself. Elsewhere nobody is told.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

FOLDER_VARIABLE = "MOPS_FL_PROGRESS"
"""Environment variable that names the folder; on one machine, and in simulations only."""

INTERVAL = 0.5
"""Seconds between two reports of one activity, at least."""

OnStep = Callable[[int, int], None]
"""Called with what is done, and of how much."""


@dataclass(frozen=True)
class Activity:
    """What a process is doing."""

    what: str
    done: int = 0
    of: int = 0
    """0 where it cannot be counted."""
    clients: int = 0
    """Clients whose own work it is, all of them together; 0 for work on behalf of all."""
    seconds: float | None = None
    """How long it took; None while it goes on."""

    @property
    def share(self) -> float:
        """The part that is done."""
        return self.done / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.what} {self.done}/{self.of}" if self.of else self.what


Tell = Callable[[Activity | None], None]
"""Takes what is being done, how long it took, and then that it is no more."""

_listener: ContextVar[Tell | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Tell) -> Iterator[None]:
    """Let a function hear of everything that is done in the block, in place of the folder."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def doing(what: str, *, of: int = 0, clients: int = 0) -> Iterator[OnStep]:
    """Tell that something is being done, as long as the block lasts.

    Yields:
        What the work calls as often as it likes; little of it is passed on.
    """
    tell = _listener.get() or _writer()
    current, started = Activity(what, 0, of, clients), time.monotonic()
    told = started
    tell(current)

    def on_step(done: int, of: int) -> None:
        nonlocal current, told
        current = replace(current, done=done, of=of)
        if time.monotonic() - told >= INTERVAL:
            told = time.monotonic()
            tell(current)

    try:
        yield on_step
        tell(replace(current, seconds=time.monotonic() - started))
    finally:
        tell(None)


def activities(folder: Path) -> list[Activity]:
    """What the processes that report to a folder are doing; those that died do nothing."""
    found = []
    for file in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            if psutil.pid_exists(int(file.name.partition("-")[0])):
                found.append(Activity(**json.loads(file.read_text(encoding="utf-8"))))
    return found


def _writer() -> Tell:
    """Keeps this thread's file in the folder; a folder that cannot be written stops no work."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return lambda _: None
    file = Path(folder) / f"{os.getpid()}-{threading.get_ident()}.json"

    def write(activity: Activity | None) -> None:
        with contextlib.suppress(OSError):
            if activity is None or activity.seconds is not None:
                file.unlink(missing_ok=True)
                return
            half = file.with_suffix(".tmp")
            half.write_text(json.dumps(asdict(activity)), encoding="utf-8")
            half.replace(file)

    return write
