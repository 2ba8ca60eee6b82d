"""Run folders as a run leaves them, without a run."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path

from mops_fl.config import defaults
from mops_fl.run.folder import COLUMNS

TASKS = ("sort", "count")


def write_run(
    folder: Path, *, method: str = "mops", rounds: int = 4, start: float = 500, end: float = 20
) -> Path:
    """A completed run whose perplexity falls from `start` to about `end`."""
    folder.mkdir(parents=True)
    facts = {"method": method, "status": "completed", "error": None, "seed": 0}
    facts |= {"config": {**defaults(), "method": method, "alpha": 0.5}, "seconds": 12.5}
    (folder / "run.json").write_text(json.dumps(facts))
    _write(folder / "rounds.csv", _evaluations(rounds, start, end))
    training = ((k, 10, 0, 50, 300.0 - k, 100, 3.5, 1000, 2000) for k in range(1, rounds + 1))
    _write(folder / "train.csv", training)
    if method == "mops":
        gate = ((k, t, e, 0.5) for k in range(rounds + 1) for t in TASKS for e in range(2))
        _write(folder / "gate.csv", gate)
    return folder


def _evaluations(rounds: int, start: float, end: float) -> Iterable[tuple]:
    for number in range(rounds + 1):
        loss = math.log(end + (start - end) * math.exp(-number))
        yield number, "all", loss * 200, 200, math.exp(loss)
        for task in TASKS:
            yield number, task, loss * 100, 100, math.exp(loss)


def _write(path: Path, rows: Iterable[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS[path.name], *rows])
