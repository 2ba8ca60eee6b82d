"""What each round of a run amounts to, in one number a name: for whoever shows it as it goes."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mops_fl.run.results import Run

_TRAIN = {
    "seconds": "train/seconds",
    "bytes_up": "train/bytes up",
    "bytes_down": "train/bytes down",
    "clients": "train/clients",
    "failures": "train/failures",
    "epsilon": "privacy/epsilon",
    "snr": "privacy/signal to noise",
    "noise": "privacy/noise",
    "clipped_share": "privacy/clipped share",
}
_EVALUATE = {
    "seconds": "evaluation/seconds",
    "bytes_down": "evaluation/bytes down",
    "clients": "evaluation/clients",
    "failures": "evaluation/failures",
}
"""What columns of `train.csv` and of `evaluate.csv` are called."""


def scalars(run: Run) -> dict[int, dict[str, float]]:
    """Each round's figures by name, rounds in order; what is not known is left out.

    ``perplexity`` is that of all tasks that train, ``perplexity of task/NAME`` a task's, NAME
    escaped as in JSON. ``train/loss`` is in nats a token; ``mixture/…`` is `Run.diagnostics`.

    Raises:
        RunError: a table is malformed.
    """
    found: dict[int, dict[str, float]] = {}

    def add(number: Any, name: str, value: float) -> None:
        if not math.isnan(value):
            found.setdefault(int(number), {})[name] = float(value)

    if run.has("rounds.csv") and run.rows("rounds.csv"):
        for number, value in run.perplexity().items():
            add(number, "perplexity", value)
        for task in run.tasks:
            for number, value in run.perplexity(task).items():
                add(number, f"perplexity of task/{_escaped(task)}", value)
    for row in _rows(run.train):
        if row["tokens"]:
            add(row["round"], "train/loss", row["nll"] / row["tokens"])
        for column, name in _TRAIN.items():
            add(row["round"], name, row[column])
    for row in _rows(run.evaluations):
        for column, name in _EVALUATE.items():
            add(row["round"], name, row[column])
    for number, line in run.diagnostics().iterrows():
        for name, value in line.items():
            add(number, f"mixture/{name}", value)
    return dict(sorted(found.items()))


def last_whole_round(facts: Mapping[str, Any]) -> float:
    """The last round whose figures stay as they are, whatever happens to the run; -1 for none.

    Args:
        facts: the run's.
    """
    return math.inf if facts["status"] == "completed" else facts.get("rounds_done", -1)


def _rows(table: Any) -> Iterable[Mapping[str, Any]]:
    return table.to_dict("records")


def _escaped(task: str) -> str:
    """On one line, and different for different tasks."""
    return json.dumps(task, ensure_ascii=False)[1:-1]
