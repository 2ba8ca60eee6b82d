"""A federation of real processes on loopback, by `mops-fl deploy`."""

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import small_run

from mops_fl.deploy.keys import make_key, public_path


def write_rows(path: Path, tasks: list[tuple[str, int]]) -> Path:
    rows = [
        {"instruction": f"Say {number}", "response": f"{task}: {number}", "category": task}
        for task, count in tasks
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@dataclass
class Federation:
    folder: Path
    model: Path
    port: int
    rows: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Tasks and numbers of rows of each node by its name; others have one row."""
    started: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def server(self) -> Path:
        return self.folder / "federation"

    def deploy(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            [small_run.COMMAND, "deploy", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def start(self, name: str, *arguments: str, **environment: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [small_run.COMMAND, "deploy", *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def start_server(self) -> None:
        ready = self.log("server").count("Uvicorn running")
        self.start("server", "server", "--listen", "127.0.0.1", "--port", str(self.port))
        wait_for(lambda: self.log("server").count("Uvicorn running") > ready)

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.is_file() else ""

    def register(self, name: str) -> None:
        make_key(self.folder / f"{name}.key")
        public = public_path(self.folder / f"{name}.key")
        self.deploy("register", name, "--public-key", str(public))

    def client(self, name: str, partition: int, port: int | None = None) -> list[str]:
        data = write_rows(self.folder / f"{name}.jsonl", self.rows.get(name, [("poems", 1)]))
        return [
            *("client", "--server", f"localhost:{port or self.port}", "--ca", "federation/ca.crt"),
            *("--key", f"{name}.key", "--data", data.name, "--model", str(self.model)),
            *("--partition", str(partition), "--dir", f"node-{name}"),
            *("-n", "dtype=float32", "-n", "device=cpu", "-n", "threads=1"),
        ]

    def stop_all(self) -> None:
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
