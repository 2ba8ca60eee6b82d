"""The process that outlives `mops-fl`: runs the SuperLink, and clears up whatever happens.

    python -m mops_fl.flower.guard FLWR_HOME RAY_FOLDER RUN_DIR COMMAND...

It holds the other end of a pipe from `mops-fl` on its standard input. `mops-fl` may write one
verdict into it, ``{"status": ..., "error": ...}``. When the pipe closes, because `mops-fl` is done
or was killed, the guard stops every process of this launch, Ray's too, makes `run.json` tell the
truth, keeps the logs and removes the rest.
"""

import contextlib
import datetime
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from mops_fl.errors import MopsError
from mops_fl.files import write_text

LOGS = ("flower.log", "superlink.log")


@dataclass(frozen=True)
class Verdict:
    """How a run ended."""

    status: str
    """completed, failed or stopped."""
    error: str | None = None


KILLED = Verdict("failed", "mops-fl was killed")
"""The verdict on a run whose `mops-fl` could not say how it ended."""


def main(arguments: list[str]) -> None:
    """Run the command until standard input closes or the command ends; then clear up."""
    home, ray_folder, run_dir = (Path(text) for text in arguments[:3])
    nowhere = subprocess.DEVNULL
    command = subprocess.Popen(arguments[3:], stdin=nowhere, stdout=nowhere, stderr=nowhere)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while command.poll() is None and not select.select([sys.stdin], [], [], 0.2)[0]:
        pass
    os.close(sys.stdout.fileno())
    received = sys.stdin.read()
    verdict = Verdict(**json.loads(received)) if received else KILLED
    clear_up(home, ray_folder, run_dir, verdict)


def clear_up(home: Path, ray_folder: Path, run_dir: Path, verdict: Verdict) -> None:
    """Leave no process and no file of a launch, but its logs and a true `run.json`."""
    kill_all(home)
    with contextlib.suppress(MopsError, OSError, ValueError):
        settle(run_dir, verdict)
    keep_logs(home, run_dir)
    shutil.rmtree(ray_folder, ignore_errors=True)


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process, but this one, that was started with this `FLWR_HOME`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(home):
                found.append(process)
    return found


def kill_all(home: Path, patience: float = 10) -> None:
    """Kill every process of this home, also those that are started meanwhile."""
    deadline = time.monotonic() + patience
    while (processes := processes_of(home)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=1)


def settle(run_dir: Path, verdict: Verdict) -> None:
    """Make the status in `run.json` what it turned out to be.

    A run that wrote down its own failure keeps its own words for it, and one that wrote down that
    it is complete is complete, whatever happened to its processes afterwards.
    """
    path = run_dir / "run.json"
    if not path.is_file():
        return
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("status") not in ("completed", verdict.status):
        finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts |= {"status": verdict.status, "error": verdict.error, "finished": finished}
        write_text(path, json.dumps(facts, indent=2) + "\n")


def keep_logs(home: Path, run_dir: Path) -> None:
    """Append the logs to those in the run folder; leave only them behind where there is none."""
    for path in home.iterdir():
        if path.name not in LOGS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not run_dir.is_dir():
        return
    for name in LOGS:
        if (home / name).is_file():
            with (home / name).open("rb") as source, (run_dir / name).open("ab") as target:
                shutil.copyfileobj(source, target)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
