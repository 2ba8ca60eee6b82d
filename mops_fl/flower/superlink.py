"""A SuperLink of one's own on this machine."""

import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mops_fl.errors import RunError
from mops_fl.flower.commands import Commands
from mops_fl.flower.guard import KILLED, Verdict, clear_up
from mops_fl.flower.home import Home, Resources

START_SECONDS = 60
"""Time that the SuperLink may take to answer; a busy machine needs several seconds."""


@dataclass
class SuperLink:
    """A running SuperLink, and the guard that holds it."""

    home: Home
    environment: dict[str, str]
    guard: subprocess.Popen
    verdict: Verdict = KILLED
    """What `run.json` shall say at the end."""

    @property
    def alive(self) -> bool:
        """Whether the SuperLink still runs: the guard closes its standard output with it."""
        assert self.guard.stdout is not None
        return not select.select([self.guard.stdout], [], [], 0)[0]

    @property
    def simulating(self) -> bool:
        """Whether a Flower simulation process runs below it."""
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(self.guard.pid).children(recursive=True)
            return any(_is_simulation(process) for process in below)
        return False

    @property
    def commands(self) -> Commands:
        """The commands that speak to it."""
        return Commands("local", self.environment, self.home.work, self.home.log)


@contextlib.contextmanager
def running(home: Home, run_dir: Path, resources: Resources) -> Iterator[SuperLink]:
    """A SuperLink for the length of the block; afterwards nothing of it is left.

    Raises:
        RunError: it did not start.
    """
    environment = home.environment(resources)
    link = SuperLink(home, environment, _start_guard(home, run_dir, environment))
    try:
        _wait_until_it_listens(link)
        yield link
    except KeyboardInterrupt:
        link.verdict = Verdict("stopped")
        raise
    except Exception as error:
        link.verdict = Verdict("failed", str(error))
        raise
    finally:
        text = json.dumps(asdict(link.verdict)).encode()
        with contextlib.suppress(BrokenPipeError):
            link.guard.communicate(text)
        if link.guard.returncode:
            clear_up(home.folder, home.ray_folder, run_dir, link.verdict)


def _start_guard(home: Home, run_dir: Path, environment: dict[str, str]) -> subprocess.Popen:
    guard = [sys.executable, "-m", "mops_fl.flower.guard"]
    guard += [str(home.folder), str(home.ray_folder), str(run_dir)]
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(home.port)]
    command += ["--log-file", str(home.superlink_log)]
    return subprocess.Popen(
        guard + command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=home.work,
        start_new_session=True,
    )


def _wait_until_it_listens(link: SuperLink) -> None:
    deadline = time.monotonic() + START_SECONDS
    while link.alive and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", link.home.port), timeout=1).close()
            return
        time.sleep(0.1)
    state = f"did not answer in {START_SECONDS} s" if link.alive else "ended at once"
    raise RunError(f"Flower's SuperLink {state}")


def _is_simulation(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.endswith("flwr-simulation") for part in process.cmdline())
    return False
