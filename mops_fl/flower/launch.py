"""One run of a Flower app in simulation, from nothing to its true status."""

import contextlib
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
from mops_fl.flower.superlink import SuperLink, running
from mops_fl.flower.verdict import GRACE_SECONDS, facts_since, judge

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
    with signals_raise(), running(home, run_dir, resources) as link:
        link.verdict = _run(link, run_dir, resources, partial(watch, home.activity))
    log = run_dir / home.log.name if run_dir.is_dir() else home.log
    # a run that was to stop may have come to its end meanwhile
    ended = facts_since(run_dir, since).get("status") == "completed"
    return Outcome(Verdict("completed") if ended else link.verdict, log)


def _run(
    link: SuperLink, run_dir: Path, resources: Resources, watch: Callable[[str], None]
) -> Verdict:
    try:
        home = link.home
        options = ("--stream", "--federation-config", resources.federation_config)
        stream = link.commands.start_run(home.app, home.run_config, *options)
        _follow(link, stream, watch)
        return _judge(link, run_dir)
    except Stopped:
        watch("stopping")
        run_id = link.commands.run_id()
        if run_id:
            link.commands.stop(run_id)
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
    return judge(
        link.commands,
        run_dir,
        since=link.home.run_config.stat().st_mtime,
        alive=link.alive,
        silence="the simulation process died without a word: killed, perhaps for want of memory "
        "(fewer --workers need less)",
    )


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` in the block."""

    def raise_stopped(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, raise_stopped) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
