"""A SuperLink of one's own on this machine, and the `flwr` commands that speak to it."""

import contextlib
import json
import re
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
from mops_fl.flower.guard import KILLED, Verdict, clear_up
from mops_fl.flower.home import Home, Resources

START_SECONDS = 60
"""Time that the SuperLink may take to answer; a busy machine needs several seconds."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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

    def start_run(self, federation_config: str) -> subprocess.Popen:
        """Start `flwr run --stream` on the staged app; its log grows in the home."""
        options = ["--run-config", str(self.home.run_config)]
        options += ["--federation-config", federation_config]
        with self.home.log.open("wb") as log:
            return subprocess.Popen(
                ["flwr", "run", str(self.home.app), "local", "--stream", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.home.work,
                start_new_session=True,
            )

    def run_id(self) -> str | None:
        """The id that Flower gave to the run; None before it has one."""
        found = re.search(r"Successfully started run (\d+)", read_log(self.home.log))
        return found[1] if found else None

    def status(self, run_id: str) -> tuple[str, str]:
        """Flower's own status (``running``, ``finished:failed``, ...) and its details.

        Raises:
            RunError: Flower did not tell.
        """
        answer = self._flwr("list", "--run-id", run_id, "--format", "json")
        try:
            run = json.loads(answer)["runs"][0]
        except (ValueError, LookupError):
            raise RunError(f"`flwr list` did not tell the status of run {run_id}") from None
        return run["status"], run["status-details"]

    def stop(self, run_id: str) -> None:
        """Ask Flower to stop the run."""
        self._flwr("stop", run_id)

    def _flwr(self, *arguments: str) -> str:
        """What a command prints; nothing where it takes too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                ["flwr", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.home.work,
                timeout=60,
                check=False,
                start_new_session=True,
            )
            return _COLOUR.sub("", done.stdout.decode(errors="replace"))
        return ""


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


def read_log(path: Path) -> str:
    """The text of a log that may still grow, without colours."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return _COLOUR.sub("", text)


def _is_simulation(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.endswith("flwr-simulation") for part in process.cmdline())
    return False
