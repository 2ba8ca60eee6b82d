"""Many clients: seconds and memory of the partition, of the start, and of a round.

The model is a LLaMA of a few thousand parameters, so that what costs is the federation. Memory is
the sum of the proportional set sizes of all processes, sampled twice a second; Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from experiments.benchmarks.common import arguments, report
from experiments.golden.tiny import save_tiny_llama
from mops_fl.config import Scalar
from mops_fl.errors import RunError

COLUMNS = {
    "name": "",
    "clients": "clients",
    "rows": "rows",
    "partition": "s to partition",
    "partition_memory": "MB for it",
    "before": "s to round 1",
    "training": "s of 100 clients training",
    "evaluation": "s of evaluating 100",
    "after": "s after the last round",
    "memory": "MB in all",
}

_SHARES = r"""
import json, re, sys, time
from pathlib import Path
from mops_fl.config import Config
from mops_fl.data import load_corpus
from partitions import shares
config = Config.from_flat(json.loads(sys.argv[1]))
corpus = load_corpus(config.data, config.seed)
def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, start = peak(), time.perf_counter()
made = shares(corpus, config)
assert len(made) == config.partition.num_clients
seconds = time.perf_counter() - start
print(json.dumps({"partition": seconds, "partition_memory": peak() - before}))
"""


class Sampler(threading.Thread):
    """The largest memory of a process and all below it, in MB."""

    def __init__(self, process: subprocess.Popen, every: float = 0.5) -> None:
        """Begin to look.

        Args:
            process: the topmost.
            every: seconds between two looks; one takes some 0.1 s of a core where Ray runs.
        """
        super().__init__(daemon=True)
        self.process, self.every, self.most = psutil.Process(process.pid), every, 0.0
        self.start()

    def run(self) -> None:
        """Look until the process is gone."""
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for each in [self.process, *self.process.children(recursive=True)]:
                try:
                    total += each.memory_full_info().pss
                except psutil.Error:
                    continue
            self.most = max(self.most, total / 1e6)
            time.sleep(self.every)


def values(options: argparse.Namespace, clients: int, rows: int, model: Path) -> dict[str, Scalar]:
    """The run's configuration."""
    return {
        "model": str(model),
        "method": "fedprompt",
        "dtype": "float32",
        "seed": options.seed,
        "engine": "cohort",
        "num-clients": clients,
        "active-clients": min(100, clients),
        "num-samples": rows,
        "num-server-rounds": 2,
        "eval-every": 1,
        "evaluate-clients": min(100, clients - 1),
        "eval-samples": 1,
        "local-steps": 1,
        "pretrain-prompt-steps": 1,
    }


def measured(options: argparse.Namespace, clients: int, rows: int) -> dict[str, Any]:
    """One federation, from the partition to the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flat = values(options, clients, rows, save_tiny_llama(folder / "model"))
        done = subprocess.run(
            [sys.executable, "-c", _SHARES, json.dumps(flat)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunError(f"{clients} clients: {done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        command = [sys.executable, "-c", "from mops_fl.cli import main; main()", "simulate"]
        command += ["--name=run", *(f"-c{key}={value}" for key, value in flat.items())]
        begun = time.time()
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        sampler = Sampler(process)
        _, error = process.communicate()
        ended = time.time()
        if process.returncode:
            raise RunError(f"{clients} clients: {error}")
        return {**found, **_phases(folder / "runs" / "run", begun, ended), "memory": sampler.most}


def _phases(run: Path, begun: float, ended: float) -> dict[str, float]:
    """Seconds before the first round, of a later round's parts, and after the last round."""
    train, evaluate = (pd.read_csv(run / name) for name in ("train.csv", "evaluate.csv"))
    checkpoints = [run / "checkpoints" / f"round-{number:03d}.safetensors" for number in (0, 2)]
    first, last = (file.stat().st_mtime for file in checkpoints)
    return {
        "before": first - begun,
        "training": float(train.query("round == 2")["seconds"].iloc[0]),
        "evaluation": float(evaluate.query("round == 1")["seconds"].iloc[0]),
        "after": ended - last,
    }


def main() -> None:
    """Run the benchmark."""
    parser = arguments("clients", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--rows", type=int, help="in all; a hundred a client by default")
    options = parser.parse_args()
    results = []
    for clients in options.clients[: 2 if options.quick else None]:
        rows = options.rows or 100 * clients
        found = measured(options, clients, rows)
        results.append({"name": "", "clients": clients, "rows": rows, **found})
    report("federations of many clients, of a tiny LLaMA", COLUMNS, results, options)


if __name__ == "__main__":
    main()
