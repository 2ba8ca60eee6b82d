"""One run of a Flower app in simulation, from nothing to its true status."""

import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from mops_fl.config import Scalar
from mops_fl.flower.guard import Verdict
from mops_fl.flower.home import Home, Resources
from mops_fl.flower.superlink import SuperLink, read_log, running

GRACE_SECONDS = 5
"""Time in which Flower learns that a simulation process ended, if that could still say so."""

Watch = Callable[[Path, str], None]
"""Shows how far the run is. Takes the folder where processes say what they are doing, and what else
is going on, which is mostly empty."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and where its log lies."""

    verdict: Verdict
    log: Path


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""


def launch(app: Path, flat: Mapping[str, Scalar], resources: Resources, watch: Watch) -> Outcome:
    """Run the Flower app in the folder `app`, calling `watch` several times a second.

    SIGINT and SIGTERM stop the run for real, and are an outcome like others.

    Raises:
        RunError: Flower could not be started.
    """
    run_dir = Path(str(flat["run-dir"]))
    home = Home.create()
    home.prepare(app, flat)
    since = home.run_config.stat().st_mtime
    with _signals_raise(), running(home, run_dir, resources) as link:
        link.verdict = _run(link, run_dir, resources, partial(watch, home.activity))
    log = run_dir / home.log.name if run_dir.is_dir() else home.log
    # a run that was to stop may have come to its end meanwhile
    ended = _facts(run_dir, since).get("status") == "completed"
    return Outcome(Verdict("completed") if ended else link.verdict, log)


def _run(
    link: SuperLink, run_dir: Path, resources: Resources, watch: Callable[[str], None]
) -> Verdict:
    try:
        stream = link.start_run(resources.federation_config)
        _follow(link, stream, watch)
        return _judge(link, run_dir)
    except Stopped:
        watch("stopping")
        run_id = link.run_id()
        if run_id:
            link.stop(run_id)
            if _judge(link, run_dir).status == "completed":
                return Verdict("completed")
        return Verdict("stopped")


def _follow(link: SuperLink, stream: subprocess.Popen, watch: Callable[[str], None]) -> None:
    """Return when the run's log ends, or when it cannot end any more."""
    last_seen: float | None = None
    while stream.poll() is None and link.alive:
        watch("")
        if link.simulating:
            last_seen = time.monotonic()
        elif last_seen is not None and time.monotonic() - last_seen > GRACE_SECONDS:
            return
        time.sleep(0.5)
    watch("")


def _judge(link: SuperLink, run_dir: Path) -> Verdict:
    """The verdict on a run whose log has ended."""
    log, run_id = read_log(link.home.log), link.run_id()
    facts = _facts(run_dir, since=link.home.run_config.stat().st_mtime)
    if facts.get("status") == "completed":
        return Verdict("completed")
    if not link.alive:
        return Verdict("failed", "Flower's SuperLink died while the run went on")
    if run_id is None:
        return Verdict("failed", f"`flwr run` was refused: {_words(log)}")
    status, details = _final_status(link, run_id)
    facts = _facts(run_dir, since=link.home.run_config.stat().st_mtime)
    if status == "finished:stopped":
        return Verdict("stopped")
    if status == "finished:completed" and facts.get("status", "completed") == "completed":
        return Verdict("completed")
    if status == "finished:completed":
        return Verdict("failed", facts.get("error") or "the ServerApp ended before the last round")
    if status == "finished:failed":
        return Verdict("failed", facts.get("error") or _cause(details, log))
    return Verdict(
        "failed",
        "the simulation process died without a word: killed, perhaps for want of memory "
        "(fewer --workers need less)",
    )


def _final_status(link: SuperLink, run_id: str) -> tuple[str, str]:
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        status, details = link.status(run_id)
        if status.startswith("finished") or time.monotonic() > deadline:
            return status, details
        time.sleep(0.5)


def _facts(run_dir: Path, since: float) -> dict:
    """What the ServerApp wrote; nothing where `run.json` is still that of the run resumed."""
    path = run_dir / "run.json"
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_mtime >= since:
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _cause(details: str, log: str) -> str:
    """The exception's message, or the log's last error where Flower hides the former."""
    message = details.removeprefix("Simulation failed with exception: ")
    if message != "An error was encountered. Ending simulation.":
        return message
    errors = re.findall(r"^[\w.]*(?:Error|Exception): (.+)$", log, flags=re.MULTILINE)
    hidden = ("Simulation Runtime crashed.", message)
    return next((text for text in reversed(errors) if text not in hidden), message)


def _words(log: str) -> str:
    """The text of a log without the frame that Flower draws around errors."""
    return " ".join(re.sub(r"[─│╭╮╰╯]", " ", log).split()) or "it printed nothing"


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def raise_stopped(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, raise_stopped) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
