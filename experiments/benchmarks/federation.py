"""Real federations over Flower and Ray: scaling with workers, and what is not local training.

Each case is one `mops-fl simulate` in processes of its own. `busy` is the share of the workers'
time in a round's training phase that clients spend on local steps; the rest is the overhead:
messages, sampling, averaging, waiting for the slowest. A first round, in which workers load, does
not count. `overhead` is that share of a round at the paper's 250 local steps, as it would be for
the seconds of overhead seen here and the seconds of a local step seen here.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.benchmarks.common import arguments, report
from mops_fl.config import Scalar
from mops_fl.errors import RunError
from mops_fl.machine import cores

PAPER_STEPS = 250
COLUMNS = {
    "name": "",
    "workers": "workers",
    "seconds": "s a round",
    "steps_per_second": "steps/s",
    "relative": "× first row",
    "busy": "busy",
    "overhead_seconds": "s of overhead",
    "overhead": "overhead at 250 steps",
}


def federate(options: argparse.Namespace, engine: str, workers: int) -> Path:
    """Run one federation; its run folder."""
    values: dict[str, Scalar] = {
        "model": options.model,
        "dtype": options.dtype,
        "device": options.device,
        "seed": options.seed,
        "engine": engine,
        "num-clients": 20,
        "num-samples": 1000,
        "num-server-rounds": 1 + options.rounds,
        "local-steps": options.local_steps,
        "eval-samples": 1,
        "eval-every": 1 + options.rounds,
        "pretrain-prompt-steps": 1,
        "pretrain-gate-steps": 1,
    }
    name = f"{engine}-{workers}"
    command = [str(Path(sys.executable).with_name("mops-fl")), "simulate", f"--name={name}"]
    command += [f"--runs-dir={options.folder}", f"--workers={workers}"]
    command += [f"-c{key}={value}" for key, value in values.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{' '.join(command)} failed:\n{done.stderr}")
    return Path(options.folder) / name


def measured(run: Path, workers: int) -> dict[str, Any]:
    """The rounds after the first, from the run's own tables."""
    rounds = pd.read_csv(run / "train.csv").query("round > 1")
    clients = pd.read_csv(run / "clients.csv").query("round > 1")
    seconds, steps = rounds["seconds"].mean(), rounds["steps"].mean()
    training = clients["seconds"].sum() / len(rounds) / workers
    overhead = seconds - training
    at_paper = PAPER_STEPS * rounds["clients"].mean() * training / steps
    return {
        "workers": workers,
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "busy": training / seconds,
        "overhead_seconds": overhead,
        "overhead": overhead / (overhead + at_paper),
    }


def main() -> None:
    """Run the benchmark."""
    parser = arguments("federation", __doc__)
    parser.add_argument("--rounds", type=int, help="after the first")
    parser.add_argument("--local-steps", type=int)
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers to try")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.local_steps = options.local_steps or (2 if options.quick else 5)
    tried: Sequence[int] = options.workers or sorted({1, cores()})
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        for engine in ("clients", "cohort"):
            for workers in tried:
                found = measured(federate(options, engine, workers), workers)
                first = results[0]["steps_per_second"] if results else found["steps_per_second"]
                relative = found["steps_per_second"] / first
                results.append({"name": f"engine={engine}", **found, "relative": relative})
    title = f"federations of 10 clients × {options.local_steps} local steps, {options.model}"
    report(f"{title}, {options.dtype}", COLUMNS, results, options)


if __name__ == "__main__":
    main()
