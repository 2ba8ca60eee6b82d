"""Keeps a SuperNode running, and ends all of it when it is told to.

    python -m mops_fl.deploy.supervise NODE_FOLDER COMMAND...

A SuperNode ends where its server refuses it: while the key is not registered, or while the server
believes that the node is still there, some 60 s after it was killed. It is started again and again.
SIGTERM and SIGINT stop it, and every process of this node. Where this process is killed, Linux
stops the SuperNode; what is left running all the same is stopped by the next one.
"""

import contextlib
import ctypes
import datetime
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mops_fl.errors import ConfigError
from mops_fl.files import held
from mops_fl.flower.guard import kill_all, processes_of

SHORTEST, LONGEST = 5.0, 60.0
"""Seconds between two starts."""

SETTLED = 120.0
"""A SuperNode that ran so long was accepted: the next start does not wait longer than the last."""

FAREWELL = 10.0
"""Seconds that a SuperNode has to say goodbye to its server, and then its trainer to tidy up."""

_SIGNAL_OF_PARENT_DEATH = 1
"""`PR_SET_PDEATHSIG` of Linux."""


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a node's folder.

    Raises:
        ConfigError: another process does.
    """
    with held(lock) as mine:
        if not mine:
            raise ConfigError(
                f"--dir {lock.parent}: this node runs already; another node on this machine needs "
                "a --dir and a --port of its own"
            )
        yield


def keep_running(flwr_home: Path, work: Path, command: list[str]) -> None:
    """Start the command again whenever it ends, until this process is told to stop."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    wait = SHORTEST
    while not stop.is_set():
        _clear(flwr_home)
        started = time.monotonic()
        # the terminal's Ctrl-C is for this process alone
        process = subprocess.Popen(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        while process.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            _part(process)
        else:
            wait = SHORTEST if time.monotonic() - started > SETTLED else min(2 * wait, LONGEST)
            _say(
                f"the SuperNode ended (status {process.returncode}); why stands above. Again in "
                f"{wait:.0f} s: a node that was killed is refused for about a minute, one whose "
                "key is not registered until it is, one whose clock is wrong until it is set"
            )
            stop.wait(wait)
    _clear(flwr_home)
    _say("stopped")


def _clear(flwr_home: Path) -> None:
    """End what is left of a SuperNode; first by itself, as its trainer does that tidies up."""
    deadline = time.monotonic() + FAREWELL
    while processes_of(flwr_home) and time.monotonic() < deadline:
        time.sleep(0.1)
    kill_all(flwr_home)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_OF_PARENT_DEATH, signal.SIGINT)


def _part(process: subprocess.Popen) -> None:
    """Let it tell its server, which would count the node as there for a minute."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(FAREWELL)


def _say(text: str) -> None:
    now = datetime.datetime.now().strftime("%H:%M:%S")
    print(f"mops-fl: {now} {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Supervise the SuperNode of a node's folder."""
    folder, *command = arguments
    node = Path(folder)
    try:
        with alone(node / "lock"):
            keep_running(node / "flwr-home", node / "work", command)
    except ConfigError as error:
        raise SystemExit(f"mops-fl: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
