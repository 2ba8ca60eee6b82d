"""The ClientApp's end: a message goes to the node's resident trainer, which is started on demand.

Flower starts a process for every message; loading torch and the backbone in each of them would
take longer than the work. Nothing heavy is imported here.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Context, Message

import mops_fl
from mops_fl.config import Scalar
from mops_fl.errors import RunError
from mops_fl.node.node_config import NodeConfig
from mops_fl.node.node_home import NodeHome
from mops_fl.node.service import Request, Stale
from mops_fl.training.tasks import Served, Task

START_SECONDS = 300
"""Time that a trainer may take to listen; it does so before it imports torch."""

_TRIES = 3
"""Trainers that a message goes to: one of another configuration, one that dies, one more."""

_LONGEST_WAIT = 7 * 86_400.0
"""Seconds: more than a message lives, and no more than a system call takes."""

_LONGEST_LOG = 10_000_000
"""Bytes of the trainer's log beyond which a new trainer begins it anew."""


def ask(message: Message, context: Context) -> Served:
    """What the node's trainer answers to a message; the state of the context is brought up to date.

    A trainer that dies in the middle is replaced, and asked again.

    Raises:
        ConfigError: the node's configuration cannot be used.
        RunError: no trainer can be started, each one died, or took longer than the message lives.
    """
    node = NodeConfig.from_flat(context.node_config)
    home, identity = NodeHome.of(node), _identity(context.node_config)
    deadline = time.monotonic() + min(message.metadata.ttl, _LONGEST_WAIT)
    died = 0
    for _ in range(_TRIES):
        with _connection(home, context.node_config, identity) as connection:
            try:
                connection.send(Request(identity, Task(message, context)))
                answer = _within(deadline, connection, home)
            except (EOFError, OSError):
                died += 1
                continue
        if isinstance(answer, Stale):
            _wait_until_gone(home)
            continue
        context.state = answer.answers[0].state
        return answer
    raise RunError(f"the node's trainer died {died} times over this message: see {home.log}")


def _within(deadline: float, connection: Connection, home: NodeHome) -> Served | Stale:
    """The trainer's answer; one that does not come in time is the end of the trainer.

    Raises:
        RunError: it did not come.
    """
    if not connection.poll(max(0.0, deadline - time.monotonic())):
        with suppress(OSError, ValueError):
            os.kill(int(home.pid.read_text(encoding="ascii")), signal.SIGKILL)
        raise RunError("the node's trainer did not answer within the lifetime of the message")
    return connection.recv()


def _identity(flat: Mapping[str, Scalar]) -> str:
    """Of what a trainer must be started anew for: the node's configuration, and the code."""
    package = Path(mops_fl.__file__).parent
    newest = max(file.stat().st_mtime_ns for file in package.rglob("*.py"))
    facts = [sorted(flat.items()), str(package), newest, sys.executable]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _connection(home: NodeHome, flat: Mapping[str, Scalar], identity: str) -> Connection:
    """A connection to the trainer; of several processes that miss it one starts it."""
    with (home.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _connect(home) or _started(home, flat, identity)


def _connect(home: NodeHome) -> Connection | None:
    trial = socket.socket(socket.AF_UNIX)
    try:
        trial.connect(os.fsencode(home.socket))
    except OSError:
        trial.close()
        return None
    return Connection(trial.detach())


def _started(home: NodeHome, flat: Mapping[str, Scalar], identity: str) -> Connection:
    """A connection to a new trainer, which goes on when its starter has ended.

    Raises:
        RunError: it did not come to listen.
    """
    package = str(Path(mops_fl.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    if threads := flat.get("threads"):
        environment["OMP_NUM_THREADS"] = str(threads)
    too_long = home.log.is_file() and home.log.stat().st_size > _LONGEST_LOG
    how = os.O_CREAT | os.O_WRONLY | (os.O_TRUNC if too_long else os.O_APPEND)
    command = [sys.executable, "-m", "mops_fl.node.resident"]
    log = os.open(home.log, how, 0o600)
    try:
        subprocess.run(
            [*command, json.dumps(dict(flat)), identity, str(os.getppid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            timeout=START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"the node's trainer did not listen in time: see {home.log}") from None
    finally:
        os.close(log)
    if connection := _connect(home):
        return connection
    raise RunError(f"the node's trainer ended at once: see {home.log}")


def _wait_until_gone(home: NodeHome) -> None:
    deadline = time.monotonic() + START_SECONDS
    while home.socket.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with suppress(FileNotFoundError):
        home.socket.unlink()
