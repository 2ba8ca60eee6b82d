"""Run folders as a run leaves them, without a run."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mops_fl.config import defaults
from mops_fl.run.folder import COLUMNS, completed, csv_line

TASKS = ("sort", "count")
LABELS = (
    *("1", "2", "1e5", "1.0", "inf", "nan", "None", "NA", "N/A", "null", "", "True", "all"),
    *("a,b", 'q"q', "a\nb", "a\rb", "a|b", "[bold]", "[/x]", "$x_2$", "$", "_lead", ":smile:"),
    *("t" * 80, "日本語", "😀", "\x1b[31mred", "\\frac", " "),
)
"""Names of tasks that are text and nothing else."""


def write_run(
    folder: Path,
    *,
    method: str = "mops",
    rounds: int = 4,
    start: float = 500,
    end: float = 20,
    tasks: Sequence[str] = TASKS,
    config: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """A completed run whose perplexity falls from `start` to about `end`."""
    folder.mkdir(parents=True)
    config = {**defaults(), "method": method, "alpha": 0.5, **(config or {})}
    always = {"method": method, "status": "completed", "error": None, "seed": config["seed"]}
    facts = {**always, "config": config, "seconds": 12.5, **facts}
    (folder / "run.json").write_text(json.dumps(facts))
    write_table(folder / "partition.csv", ((0, task, 9, 1) for task in tasks))
    write_table(folder / "rounds.csv", _perplexities(rounds, start, end, tasks))
    training = ((k, 10, 0, 50, 300.0 - k, 100, 3.5, 1000, 2000) for k in range(1, rounds + 1))
    write_table(folder / "train.csv", training)
    write_table(folder / "evaluation.csv", _of_clients(rounds, start, end, tasks))
    write_table(folder / "evaluate.csv", ((k, 9, 1, 200, 2.5, 70) for k in range(rounds + 1)))
    if method == "mops":
        gate = ((k, t, e, 0.5) for k in range(rounds + 1) for t in tasks for e in range(2))
        write_table(folder / "gate.csv", gate)
    return folder


def write_table(path: Path, rows: Iterable[tuple]) -> None:
    """One of the tables of a run folder."""
    table = completed(path.name, rows)
    text = "".join(map(csv_line, [tuple(COLUMNS[path.name]), *table]))
    path.write_text(text, encoding="utf-8", newline="")


def _of_clients(rounds: int, start: float, end: float, tasks: Sequence[str]) -> Iterable[tuple]:
    """Two clients, one a tenth below and one a tenth above the mean loss."""
    for number, task, nll, tokens, _, _ in _perplexities(rounds, start, end, tasks):
        if tokens == 100:
            yield from ((number, p, task, nll / 2 * (0.9 + 0.2 * p), 50) for p in range(2))


def _perplexities(rounds: int, start: float, end: float, tasks: Sequence[str]) -> Iterable[tuple]:
    for number in range(rounds + 1):
        loss = math.log(end + (start - end) * math.exp(-number))
        yield number, "all", loss * 200, 200, math.exp(loss), 1.0
        for task in tasks:
            yield number, task, loss * 100, 100, math.exp(loss), 1.0
