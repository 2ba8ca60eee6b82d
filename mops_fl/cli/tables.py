"""Run folders as tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mops_fl.labels import one_line

if TYPE_CHECKING:
    from mops_fl.run.results import Run

SHOWN_FACTS = (
    "status",
    "error",
    "method",
    "seed",
    "device",
    "started",
    "finished",
    "seconds",
    "rounds_done",
    "bytes_up",
    "bytes_down",
    "commit",
    "model_digest",
    "data_digest",
)
"""The keys of `run.json` that are shown, where they have a value."""


def facts(run: "Run") -> Table:
    """What `run.json` says of a run, and the values that are not the defaults."""
    from mops_fl.config import defaults

    table = Table("", one_line(run.name, limit=60), show_header=True, box=None)
    for key in SHOWN_FACTS:
        if run.facts.get(key) not in (None, ""):
            table.add_row(key.replace("_", " "), _text(key, run.facts[key]))
    for key, value in run.facts["config"].items():
        if value != defaults().get(key) and key not in ("method", "seed", "run-dir", "resume"):
            table.add_row(key, str(value))
    return table


def comparison(runs: Sequence["Run"]) -> Table:
    """Perplexity per evaluated round, a column for each run."""
    methods = [run.method for run in runs]
    # Two runs of one method are told apart by their folders.
    headings = (
        methods
        if len(set(methods)) == len(methods)
        else [one_line(run.name, limit=30) for run in runs]
    )
    curves = [run.perplexity() for run in runs]
    table = _numbers("round", *headings, title="perplexity on answer tokens, all tasks")
    for number in sorted({number for curve in curves for number in curve.index}):
        cells = [f"{curve[number]:.2f}" if number in curve.index else "" for curve in curves]
        table.add_row(str(number), *cells)
    return table


def per_task(run: "Run") -> Table:
    """Perplexity of each task in the first and in the last evaluated round."""
    rounds = run.perplexity().index[[0, -1]]
    headings = (f"round {number}" for number in rounds)
    table = _numbers("task", *headings, title="perplexity per task")
    for task in run.tasks:
        curve = run.perplexity(task)
        cells = (f"{curve[number]:.2f}" if number in curve.index else "" for number in rounds)
        table.add_row(one_line(task, limit=50), *cells)
    return table


def work(run: "Run") -> Table:
    """What all rounds of training, and all evaluations, took together."""
    train, evaluations = run.train, run.evaluations
    tokens = train["tokens"].sum()
    table = Table("", "training", "evaluation", title="all rounds", title_justify="left", box=None)
    table.add_row("rounds", str(len(train)), str(len(evaluations)))
    for key in ("clients", "failures"):
        table.add_row(key, f"{train[key].sum():,}", f"{evaluations[key].sum():,}")
    table.add_row("local steps", f"{train['steps'].sum():,}")
    table.add_row("mean loss per token", f"{train['nll'].sum() / tokens:.3f}" if tokens else "")
    seconds = (part["seconds"].sum() for part in (train, evaluations))
    table.add_row("seconds", *(f"{each:,.1f}" for each in seconds))
    table.add_row("bytes up", _text("bytes_up", int(train["bytes_up"].sum())))
    down = (int(part["bytes_down"].sum()) for part in (train, evaluations))
    table.add_row("bytes down", *(_text("bytes_down", each) for each in down))
    return table


def _numbers(first: str, *others: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, justify="right" if first == "round" else "left")
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _text(key: str, value: Any) -> str:
    if key.startswith("bytes"):
        return f"{value:,} ({value / 1e6:.1f} MB)"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
