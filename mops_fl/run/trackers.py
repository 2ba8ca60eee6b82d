"""Passing a run's figures on to TensorBoard, or to whatever has the interface of wandb.

Whoever has the run folder can do it, while the run goes on or later: everything is read from its
tables. Only rounds that are whole are passed on, so that a run that is resumed repeats none.
"""

import importlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from mops_fl.errors import ConfigError
from mops_fl.files import version, write_text
from mops_fl.run.folder import read_facts
from mops_fl.run.results import Run
from mops_fl.run.scalars import last_whole_round, scalars

PROJECT = "mops-fl"
"""The project of wandb that runs are logged to, unless `WANDB_PROJECT` names another."""


class Tracker(Protocol):
    """What rounds are passed on to."""

    done: int
    """The last round that it has; -1 before it has any."""

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Take the figures of a round, as `scalars` names them; rounds come in order."""

    def close(self) -> None:
        """Write what is still to be written."""


class TensorBoard:
    """Event files in the folder `tensorboard` of a run's, made anew each time.

    Figures are scalars of 32 bits, by round; the configuration is a text.
    """

    done = -1

    def __init__(self, run: Run) -> None:
        """Begin the events of a run."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run.folder / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        # whoever has read the events that were here forgets them
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=0, session_log=start))
        self._add_text("configuration", configuration(run))

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Write a round's scalars, so that a TensorBoard that is open shows them."""
        made = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(number, made)
        self._writer.flush()
        self.done = number

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    def _add_text(self, tag: str, text: str) -> None:
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        metadata = create_summary_metadata(display_name="", description="")
        tensor = make_tensor_proto([text.encode()])
        self._add(0, [self._summary.Value(tag=tag, metadata=metadata, tensor=tensor)])

    def _add(self, number: int, values: list[Any]) -> None:
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=number, summary=summary))


class Wandb:
    """A run of wandb, or of a module with its interface.

    Used of it: ``init(project, name, config, resume)``, and of what that returns ``log(values,
    step)`` and ``finish()``. wandb itself also gets ``id``, ``dir`` and ``mode``: it stays offline
    unless `WANDB_MODE` says otherwise. What it has is noted in `wandb/tracked.json` of the run
    folder, so that it is told of no round twice.
    """

    def __init__(self, run: Run) -> None:
        """Begin nothing yet: a run that is there in full is left alone."""
        self.done = -1
        self._note = run.folder / "wandb" / "tracked.json"
        if self._note.is_file():
            self.done = int(json.loads(self._note.read_text(encoding="utf-8"))["round"])
        self._source = run
        self._run: Any = None

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Tell of a round; the first one begins a run there, or carries it on."""
        self._run = self._run or _begin(self._source)
        self._run.log(dict(values), step=number)
        self.done = number
        write_text(self._note, json.dumps({"round": number}) + "\n")

    def close(self) -> None:
        """End the run there."""
        if self._run:
            self._run.finish()


TRACKERS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}
"""By the name of the option that asks for one."""


class Following:
    """Passes the rounds of a run folder on, as they become whole."""

    def __init__(
        self,
        folder: Path,
        names: Iterable[str],
        warn: Callable[[str], None],
        before: tuple[int, int] | None = None,
    ) -> None:
        """Follow a run, from its first round on.

        Args:
            folder: the run's; it may be made later.
            names: of `TRACKERS`.
            warn: takes what went wrong; a tracker that fails is left out from then on.
            before: the version of a `run.json` that does not count: it is of before the run was
                carried on.
        """
        self._folder, self._names, self._warn = folder, list(names), warn
        self._trackers: dict[str, Tracker] = {}
        self._seen = before

    def step(self) -> None:
        """Pass on what is new; nothing is raised."""
        found = version(self._folder / "run.json") if self._names else None
        if found is None or found == self._seen:
            return
        self._seen = found
        try:
            run = Run(self._folder, read_facts(self._folder))
            last = last_whole_round(run.facts)
            rounds = {number: own for number, own in scalars(run).items() if number <= last}
        except Exception as error:
            self._warn(f"not tracked: {_reason(error)}")
            return
        for name in list(self._names):
            self._guarded(name, partial(self._pass_on, name, run, rounds))

    def close(self) -> None:
        """Pass on the last rounds and have trackers write what they hold; nothing is raised."""
        self.step()
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.close)
        self._names = []

    def _pass_on(self, name: str, run: Run, rounds: Mapping[int, Mapping[str, float]]) -> None:
        if name not in self._trackers:
            self._trackers[name] = TRACKERS[name](run)
        tracker = self._trackers[name]
        for number, values in rounds.items():
            if number > tracker.done:
                tracker.log(number, values)

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._names.remove(name)
            self._trackers.pop(name, None)
            self._warn(
                f"--{name} failed and is left out from now on: {_reason(error)}; the run is not "
                f"affected, and mops-fl watch {self._folder} --{name} does it later"
            )


def _begin(run: Run) -> Any:
    """A run of wandb or trackio that is the same one whenever this run is passed on."""
    module, identity = _wandb(), str(run.facts.get("id", ""))
    mode = os.environ.get("WANDB_MODE", "offline")
    own = {"id": identity or None, "dir": str(run.folder), "mode": mode}
    return module.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name="-".join(filter(None, (run.name, identity[:8]))),
        config=dict(run.facts["config"]),
        resume="allow",
        **(own if module.__name__ == "wandb" else {}),
    )


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers whose packages are missing, before anything starts.

    Raises:
        ConfigError: one is.
    """
    for name in names:
        if name == "tensorboard":
            _check_tensorboard()
        else:
            _wandb()


def configuration(run: Run) -> str:
    """A run's configuration as Markdown that shows every value as it stands."""
    config = {"method": run.method, "seed": run.facts["seed"], **run.facts["config"]}
    lines = (
        f"    {key} = {json.dumps(value, ensure_ascii=False)}" for key, value in config.items()
    )
    return "\n".join(lines)


def _check_tensorboard() -> None:
    try:
        importlib.import_module("tensorboard.summary.writer.event_file_writer")
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs the package tensorboard ({error}): pip install 'mops-fl[track]'"
        ) from error


def _wandb() -> ModuleType:
    """The module that is there: wandb, else trackio.

    Raises:
        ConfigError: neither can be imported.
    """
    reasons = []
    for name in ("wandb", "trackio"):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            reasons.append(f"{name}: {_reason(error)}")
            continue
        # a folder of that name, such as wandb itself leaves, is imported as an empty package
        if hasattr(module, "init"):
            return module
        reasons.append(f"{name}: a folder of that name is no package")
    raise ConfigError(
        f"--wandb needs wandb or trackio, and neither can be imported ({'; '.join(reasons)}): "
        "pip install wandb, or pip install trackio"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
