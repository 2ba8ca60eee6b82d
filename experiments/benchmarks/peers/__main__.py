"""Ours beside its peers: the same LoRA on the same rows, through three ways of simulating.

- ours, both engines: a real `mops-fl simulate`;
- per message: a real Flower simulation in the way of Flower's example of fine-tuning a language
  model: every message loads the model and wraps it with `peft`, one client after the other;
- `pfl`: its simulated backend with a torch model around `peft`, one client after the other.

All get the same CPU threads, as one worker that has all of them and as a worker a thread. The
first round, in which processes load, does not count. `not training` is a round less the local steps
of its clients, each with its optimiser; memory is the sum of the proportional set sizes of all
processes, looked at every two seconds. That all do the same work is checked: trained parameters,
steps, tokens, and each round's loss.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.benchmarks.common import SHAPES, arguments, report
from experiments.benchmarks.peers.contestants import Place, Ran, check_pfl, ours, per_message, pfl
from experiments.benchmarks.peers.same_work import check, task_of
from mops_fl.config import Config, Scalar
from mops_fl.errors import ConfigError
from mops_fl.machine import cores

REFERENCE = "model per message"
COLUMNS = {
    "name": "",
    "workers": "workers",
    "seconds": "s a round",
    "steps_per_second": "steps/s",
    "factor": f"× {REFERENCE}",
    "not_training": "not training",
    "memory": "MB",
    "first_loss": "first loss",
    "last_loss": "last loss",
}


def values(options: argparse.Namespace) -> dict[str, Scalar]:
    """Our run: LoRA, and as good as no evaluation."""
    return {
        "method": "lora",
        "model": options.model,
        "dtype": options.dtype,
        "device": "cpu",
        "seed": options.seed,
        "num-clients": 2 * options.clients,
        "active-clients": options.clients,
        "num-samples": 1000,
        "num-server-rounds": options.rounds,
        "local-steps": options.local_steps,
        "batch-size": options.batch_size,
        "eval-every": options.rounds,
        "evaluate-clients": 1,
        "eval-samples": 1,
    }


def contestants(
    flat: Mapping[str, Scalar], python: Path | None
) -> dict[str, Callable[[Place], Ran]]:
    """Who takes part."""
    found: dict[str, Callable[[Place], Ran]] = {
        f"ours, {engine}": partial(ours, {**flat, "engine": engine})
        for engine in ("cohort", "clients")
    }
    found[REFERENCE] = per_message
    if python:
        found["pfl"] = partial(pfl, python)
    return found


def measured(ran: Ran, workers: int) -> dict[str, Any]:
    """The rounds after the first."""
    rounds = ran.answer.rounds
    seconds = mean(own.seconds for own in rounds[1:])
    return {
        "workers": workers,
        "seconds": seconds,
        "steps_per_second": mean(own.steps for own in rounds[1:]) / seconds,
        "not_training": seconds - mean(own.training for own in rounds[1:]) / workers,
        "memory": ran.memory,
        "first_loss": rounds[0].loss,
        "last_loss": rounds[-1].loss,
        "trainable": ran.answer.trainable,
        "rounds": [{**vars(own), "loss": own.loss} for own in rounds],
        "command": ran.command,
        "versions": ran.answer.versions,
    }


def arranged(
    taking_part: dict[str, Callable[[Place], Ran]], task: Path, workers: int, threads: int
) -> list[dict[str, Any]]:
    """All contestants with so many workers."""
    ran: dict[str, Ran] = {}
    for name, run in taking_part.items():
        folder = task.parent / f"{len(ran)}-{workers}"
        ran[name] = run(Place(folder, task, workers, threads // workers))
        check({each: own.answer for each, own in ran.items()})
    rows = [{"name": name, **measured(own, workers)} for name, own in ran.items()]
    reference = next(row for row in rows if row["name"] == REFERENCE)["seconds"]
    return [{**row, "factor": reference / row["seconds"]} for row in rows]


def parsed() -> argparse.Namespace:
    """The options.

    Raises:
        ConfigError: some do not fit.
    """
    parser = arguments("peers", __doc__)
    parser.add_argument("--pfl-python", type=Path, help="an interpreter with pfl; else without it")
    parser.add_argument("--clients", type=int, help="active in a round")
    parser.add_argument("--local-steps", type=int)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="the first of which does not count")
    parser.add_argument("--workers", type=int, nargs="+", help="processes that train at a time")
    options = parser.parse_args()
    options.clients = options.clients or (4 if options.quick else 10)
    options.local_steps = options.local_steps or (2 if options.quick else 3)
    options.rounds = options.rounds or (2 if options.quick else 3)
    everyone: Sequence[int] = sorted({1, cores()})
    options.workers = options.workers or (everyone[:1] if options.quick else everyone)
    if options.model in SHAPES:
        raise ConfigError(f"--model {options.model}: has no files to load for each message")
    if options.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {options.device}: peers are compared on CPU threads alone")
    if options.rounds < 2:
        raise ConfigError(f"--rounds {options.rounds}: the first does not count, give 2 or more")
    if options.pfl_python:
        check_pfl(options.pfl_python)
    else:
        print("pfl is left out: --pfl-python names an interpreter that has it (see the README)")
    return options


def main() -> None:
    """Run the benchmark."""
    options = parsed()
    flat, results = values(options), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = folder / "task.json"
        task_of(Config.from_flat(flat), folder).write(task)
        taking_part = contestants(flat, options.pfl_python)
        for workers in options.workers:
            results += arranged(taking_part, task, workers, cores())
    title = f"{options.clients} clients × {options.local_steps} steps, LoRA, {options.model}"
    report(f"{title}, {options.dtype}", COLUMNS, results, options, threads=cores())


if __name__ == "__main__":
    main()
