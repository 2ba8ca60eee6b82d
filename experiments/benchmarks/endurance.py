"""Real nodes on loopback for half an hour, one of them hurt again and again: memory, what stays.

At random times a SuperNode, a trainer or a whole `mops-fl deploy client` of the first node is
killed; what was killed whole is started again, as systemd would. Every ten seconds the unshared
memory of every process is noted. Growth is that of a process from its third minute, or the end of
its second fifth where that is later, to its end; who lives less than five minutes has none.
"""

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import psutil

from experiments.benchmarks.common import arguments, report
from experiments.benchmarks.loopback import Federation, wait_for
from mops_fl.flower.home import free_port

COLUMNS = {
    "process": "process",
    "count": "were there",
    "minutes": "longest, min",
    "settled": "MB settled",
    "last": "MB at its end",
    "growth": "MB an hour",
}
PARTS = {
    "mops_fl.deploy.supervise": "supervisor",  # first: its command has its SuperNode's
    "mops_fl.deploy.supernode": "SuperNode",
    "mops_fl.node.resident": "trainer",
    "flwr-serverapp": "ServerApp",
    "fenced_superlink": "SuperLink",
    "flower-superexec": "SuperExec",
}
"""What tells the kinds of process by their commands; others live for one message."""

STEP, MEAN_PAUSE, LEAST = 10.0, 90.0, 300.0
"""Seconds between two looks, between two kills, and of a life that is judged."""

_VALUES = {
    **{"method": "fedprompt", "pretrain-data": "none", "max-length": 64, "local-steps": 2},
    **{"num-server-rounds": 100_000, "eval-every": 10, "round-timeout": 60},
    **{"min-reply-fraction": 0.5, "min-evaluate-fraction": 0.5},
}
_TEXT = [("billing", 12), ("poems", 8)]


class Memory:
    """What each process held, whenever it was looked at."""

    def __init__(self, made: Federation) -> None:
        """Of a federation's processes."""
        self._made = made
        self._seen: defaultdict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)

    def look(self) -> None:
        """Note all that are there."""
        now = time.monotonic()
        for process in self._made.processes():
            with contextlib.suppress(psutil.Error):
                if kind := kind_of(process):
                    held = process.memory_full_info().uss / 1e6
                    home = Path(process.environ()["FLWR_HOME"]).parent.name
                    name = f"{kind} of {home}" if home.startswith("node-") else kind
                    self._seen[name, process.pid].append((now, held))

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each kind, of the process that lived longest."""
        lives: defaultdict[str, list[list[tuple[float, float]]]] = defaultdict(list)
        for (kind, _), seen in self._seen.items():
            lives[kind].append(seen)
        for kind, found in sorted(lives.items()):
            seen = max(found, key=lambda life: life[-1][0] - life[0][0])
            times, held = (np.array(each) for each in zip(*seen, strict=True))
            lasted = times[-1] - times[0]
            row = {"process": kind, "count": len(found), "minutes": lasted / 60}
            if lasted >= LEAST:
                late = times - times[0] >= max(180.0, 0.4 * lasted)
                slope = np.polyfit(times[late], held[late], 1)[0]
                row |= {"settled": held[late][0], "last": held[-1], "growth": slope * 3600}
            yield row


def kind_of(process: psutil.Process) -> str:
    """What a process of a federation is, by `PARTS`; a supervisor's command has its SuperNode's."""
    command = " ".join(process.cmdline())
    return next((name for part, name in PARTS.items() if part in command), "")


def hurt(made: Federation, generator: np.random.Generator) -> str:
    """Kill something of the first node; what it was, empty where it was not there."""
    kind = ("supervisor", "SuperNode", "trainer")[generator.integers(3)]
    for process in made.processes(folder="node-node0"):
        with contextlib.suppress(psutil.Error):
            if kind_of(process) == kind:
                process.kill()
                return kind
    return ""


def left(made: Federation, before: set[Path]) -> dict[str, Any]:
    """What is there after the end that should not be."""
    places = (made.server / "staged", *made.folder.glob("node-*/work"))
    files = [file for place in places if place.is_dir() for file in place.rglob("*")]
    return {
        "processes": [process.name() for process in made.processes()],
        "files": [str(file) for file in [*files, *(temporary() - before)]],
        "ports": [made.port] if still_taken(made.port) else [],
    }


def temporary() -> set[Path]:
    """Files and folders of this project in the folder for temporary files."""
    return {*Path(tempfile.gettempdir()).glob("mops*")}


def still_taken(port: int) -> bool:
    """Whether somebody listens on a port."""
    connections = psutil.net_connections("tcp")
    return port in {each.laddr.port for each in connections if each.status == "LISTEN"}


def endure(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], dict]:
    """The federation: a row for each kind of process, and what happened."""
    names = [f"node{number}" for number in range(options.nodes)]
    made = Federation(folder, options.model, free_port(), dict.fromkeys(names, _TEXT))
    before = temporary()
    made.deploy("certs", "--host", "localhost")
    made.start_server()
    generator, memory = np.random.default_rng(options.seed), Memory(made)
    killed: list[str] = []
    run = made.server / "runs" / "run"
    try:
        for partition, name in enumerate(names):
            made.register(name)
            made.start(name, *made.client(name, partition))
        wait_for(lambda: all("SuperNode ID" in made.log(name) for name in names))
        values = {**_VALUES, "seed": options.seed}
        made.start("run", "run", "--name", "run", *(f"-c{k}={v}" for k, v in values.items()))
        end = time.monotonic() + 60 * options.minutes
        next_kill = time.monotonic() + generator.exponential(MEAN_PAUSE)
        while (now := time.monotonic()) < end and made.started["run"].poll() is None:
            if now > next_kill:
                killed += filter(None, [hurt(made, generator)])
                next_kill = now + generator.exponential(MEAN_PAUSE)
            if made.started[names[0]].poll() is not None:
                made.start(names[0], *made.client(names[0], 0))
            memory.look()
            time.sleep(STEP)
        went_on = made.started["run"].poll() is None
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            made.deploy("stop")
            made.started["run"].wait(timeout=240)
    finally:
        made.stop_all()
    time.sleep(5)
    train = pd.read_csv(run / "train.csv")
    rounds = pd.read_csv(run / "rounds.csv").query("task == 'all'")
    facts = {
        "went_on_to_the_end": went_on,
        "killed": {what: killed.count(what) for what in sorted(set(killed))},
        "rounds": len(train),
        "seconds_a_round": mean(train["seconds"]),
        "longest_round": float(train["seconds"].max()),
        "failures": int(train["failures"].sum()),
        "finite": bool(np.isfinite(rounds["perplexity"]).all()),
        "left": left(made, before),
    }
    return list(memory.rows()), facts


def main() -> None:
    """Run the benchmark."""
    parser = arguments("endurance", __doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args()
    options.minutes = options.minutes or (6 if options.quick else 30)
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        os.environ["MOPS_FL_CACHE"] = str(Path(name) / "cache")
        rows, facts = endure(options, Path(name))
    report(f"{options.nodes} nodes, {options.minutes:g} minutes", COLUMNS, rows, options, **facts)
    for key, value in facts.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
