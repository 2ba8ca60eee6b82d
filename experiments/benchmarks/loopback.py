"""A federation of real processes on loopback, by `mops-fl deploy`."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mops_fl.deploy.edge import Edge, node_flat
from mops_fl.deploy.folders import node_folder
from mops_fl.deploy.keys import make_key, public_path
from mops_fl.flower.home import free_port

_VALUES = ("dtype=float32", "device=cpu", "threads=1")
"""Of every node: several share a machine."""

_COMMAND = [str(Path(sys.executable).with_name("mops-fl")), "deploy"]


def write_rows(path: Path, tasks: Sequence[tuple[str, int]]) -> Path:
    """A JSONL file of rows: so many of each task."""
    rows = [
        {"instruction": f"Say {number}", "response": f"{task}: {number}", "category": task}
        for task, count in tasks
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it is not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {seconds:g} s")
        time.sleep(0.3)


@dataclass
class Federation:
    """Its server in a folder, and its nodes beside it, each with rows of its own."""

    folder: Path
    model: str | Path
    port: int
    rows: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    """Tasks and numbers of rows of each node by its name; others have one row."""
    started: dict[str, subprocess.Popen] = field(default_factory=dict)
    """The processes of `mops-fl deploy` that stay, by name."""

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.folder / "federation"

    def deploy(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run a command to its end, with variables beside those of this process; what it printed.

        Raises:
            RuntimeError: its exit status is another than expected.
        """
        done = subprocess.run(
            [*_COMMAND, *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode != code:
            raise RuntimeError(f"deploy {shlex.join(arguments)}: {done.returncode}\n{done.stdout}")
        return done.stdout

    def start(self, name: str, *arguments: str) -> None:
        """Start a command that stays, and add what it prints to its log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [*_COMMAND, *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start_server(self) -> None:
        """Start the server, and wait until it listens."""
        ready = self.log("server").count("Uvicorn running")
        self.start("server", "server", "--listen", "127.0.0.1", "--port", str(self.port))
        wait_for(lambda: self.log("server").count("Uvicorn running") > ready)

    def log(self, name: str) -> str:
        """What a command that stays has printed so far."""
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.is_file() else ""

    def register(self, name: str) -> None:
        """Make a node's keys, and let it in."""
        make_key(self.folder / f"{name}.key")
        public = public_path(self.folder / f"{name}.key")
        self.deploy("register", name, "--public-key", str(public))

    def client(self, name: str, partition: int, port: int | None = None) -> list[str]:
        """The words that start a node on one thread in float32."""
        return [
            *("client", "--server", f"localhost:{port or self.port}", "--ca", "federation/ca.crt"),
            *("--key", f"{name}.key", "--data", self.data(name).name, "--model", str(self.model)),
            *("--partition", str(partition), "--dir", f"node-{name}"),
            *(word for value in _VALUES for word in ("-n", value)),
        ]

    def data(self, name: str) -> Path:
        """The rows of a node."""
        return write_rows(self.folder / f"{name}.jsonl", self.rows.get(name, [("poems", 1)]))

    def start_strange(self, name: str, partition: int, client_app: Path) -> None:
        """Start a node that answers by another ``flwr-clientapp``, a Python file."""
        place = node_folder(self.folder / f"node-{name}")
        place.make()
        line = shlex.join([sys.executable, str(client_app), "flwr-clientapp"])
        (place.commands / "flwr-clientapp").write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        flat = node_flat(None, _VALUES, self.data(name), str(self.model), partition)
        authority, key = self.server / "ca.crt", self.folder / f"{name}.key"
        edge = Edge(f"localhost:{self.port}", authority, key, flat, free_port())
        supervisor = [sys.executable, "-P", "-m", "mops_fl.deploy.supervise", str(place.folder)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [*supervisor, *edge.command],
                cwd=place.work,
                env=place.environment(),
                stdout=log,
                stderr=log,
            )

    def stop_all(self) -> None:
        """Tell everything to end, and wait for it."""
        for process in self.started.values():
            process.send_signal(signal.SIGTERM)
        for process in self.started.values():
            process.wait(timeout=120)

    def processes(self, part: str = "", folder: str = "") -> list[psutil.Process]:
        """What still runs of it, or of one of its folders, with a text in its command."""
        found, below = [], str(self.folder / folder)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                own = process.environ().get("FLWR_HOME", "").startswith(below)
                if own and any(part in word for word in process.cmdline()):
                    found.append(process)
        return found
