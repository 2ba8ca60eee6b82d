"""Rounds of real nodes on loopback: what they cost beyond training, and a cold node's first answer.

The same federation trains twice: with nodes as they are, and with nodes that send back what they
were sent without doing anything, which is what Flower's own messages, processes and polling take.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.benchmarks.common import arguments, report
from experiments.benchmarks.loopback import Federation, wait_for
from mops_fl.flower.home import free_port

COLUMNS = {
    "name": "nodes",
    "first": "s to a cold first answer",
    "round": "s a round",
    "training": "s of training",
    "beyond": "s beyond it",
}
ECHO = Path(__file__).with_name("echo_clientapp.py")
_TABLES = ("train.csv", "clients.csv")
_FIRST = """
import json, sys, time
from flwr.app import Context, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from mops_fl.node import link
metadata = Metadata(1, "first", 1, 10, "", "", 0.0, 3600.0, "query.describe")
context = Context(1, 10, json.loads(sys.argv[1]), RecordDict(), json.loads(sys.argv[2]))
reply = link.ask(make_message(metadata, RecordDict()), context).answers[0].reply
assert reply.has_content(), reply.error
"""


def cold_answer(options: argparse.Namespace, folder: Path, rows: Path) -> float:
    """Seconds from a process's start to a node's description of itself, with no trainer there."""
    node = {
        "partition-id": 0,
        "own-data": True,
        "dataset": "jsonl",
        "data-path": str(rows),
        "model": options.model,
        "dtype": "float32",
        "device": "cpu",
        "idle-minutes": 0.02,
    }
    begun = time.perf_counter()
    command = [sys.executable, "-c", _FIRST, json.dumps(node), json.dumps({"method": "fedprompt"})]
    subprocess.run(command, cwd=folder, check=True)
    return time.perf_counter() - begun


def federated(options: argparse.Namespace, folder: Path, *, echoing: bool) -> dict[str, Any]:
    """The rounds after the first of a federation of its own."""
    folder.mkdir()
    names = [f"node{number}" for number in range(options.nodes)]
    rows = {name: [("billing", 12), ("poems", 8)] for name in names}
    made = Federation(folder, options.model, free_port(), rows)
    made.deploy("certs", "--host", "localhost")
    made.start_server()
    try:
        for partition, name in enumerate(names):
            made.register(name)
            if echoing:
                made.start_strange(name, partition, ECHO)
            else:
                made.start(name, *made.client(name, partition))
        wait_for(lambda: all("SuperNode ID" in made.log(name) for name in names))
        made.deploy(
            *("run", "--name", "run", "-cmethod=fedprompt", f"-clocal-steps={options.steps}"),
            *(f"-cnum-server-rounds={options.rounds}", f"-ceval-every={options.rounds}"),
            *("-cpretrain-data=none", "-cmax-length=64", f"-cseed={options.seed}"),
        )
    finally:
        made.stop_all()
    run = made.server / "runs" / "run"
    train, clients = (pd.read_csv(run / name).query("round > 1") for name in _TABLES)
    slowest = clients.groupby("round")["seconds"].max().mean()
    whole = train["seconds"].mean()
    return {"round": whole, "training": slowest, "beyond": whole - slowest}


def main() -> None:
    """Run the benchmark."""
    parser = arguments("deployment", __doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        echo = federated(options, folder / "echo", echoing=True)
        ours = federated(options, folder / "ours", echoing=False)
        first = cold_answer(options, folder, folder / "ours" / "node0.jsonl")
    results = [
        {"name": f"{options.nodes}, echoing", **echo},
        {"name": f"{options.nodes}, training {options.steps} steps", "first": first, **ours},
    ]
    report("real nodes on loopback", COLUMNS, results, options)


if __name__ == "__main__":
    main()
