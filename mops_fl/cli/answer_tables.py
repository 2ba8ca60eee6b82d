"""What answers are worth as tables for the terminal."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from mops_fl.cli.tables import numbers
from mops_fl.labels import one_line

if TYPE_CHECKING:
    from mops_fl.generation.quality import Answer, Score

NAMES = {"rouge_l": "ROUGE-L", "exact": "exact match"}
"""What measures are called."""


def tables(answers: "Sequence[Answer]", scores: "Sequence[Score]") -> Iterable[Table]:
    """All that is told of answers: by task, by client, and last all together."""
    for measure in NAMES:
        if found := [s for s in scores if s.measure == measure and s.task is not None]:
            yield _by_task(measure, found)
    held = {answer.client for answer in answers}
    if len(held) > 1 and None not in held:
        yield _by_client(answers, scores)
    yield _summary([score for score in scores if score.task is None])


def _by_task(measure: str, scores: "Sequence[Score]") -> Table:
    """A line a task, a column a model."""
    models = [*dict.fromkeys(score.model for score in scores)]
    of_labels = ", tasks whose answers are labels" if measure == "exact" else ""
    places = dict.fromkeys((score.part, score.task) for score in scores)
    names = [_named(one_line(task or "", limit=50), part) for part, task in places]
    table = numbers(
        *("task", "rows", *(one_line(model, limit=40) for model in models)),
        title=f"{NAMES[measure]} by task{of_labels}",
        names=names,
    )
    cells = {(score.part, score.task, score.model): score for score in scores}
    for name, place in zip(names, places, strict=True):
        own = [cells[*place, model] for model in models]
        table.add_row(name, f"{own[0].rows:,}", *(_mean(score) for score in own))
    return table


def _by_client(answers: "Sequence[Answer]", scores: "Sequence[Score]") -> Table:
    """How clients fare, one by one."""
    from mops_fl.generation.quality import tenths

    groups = dict.fromkeys((score.part, score.model) for score in scores)
    names = [_named(one_line(model, limit=40), part) for part, model in groups]
    table = numbers(
        *("clients", "number", "mean", "sd", "worst 10 %", "best 10 %"),
        title="ROUGE-L by client, each client counting once",
        names=names,
    )
    for name, (part, model) in zip(names, groups, strict=True):
        own = tenths(each for each in answers if (each.part, each.model) == (part, model))
        values = (own[key] for key in ("mean", "sd", "worst", "best"))
        table.add_row(name, str(own["clients"]), *(_number(value) for value in values))
    return table


def _summary(scores: "Sequence[Score]") -> Table:
    """A line a model, its measures beside one another."""
    held = any(score.clients for score in scores)
    several = len({score.model for score in scores}) > 1
    measures = [name for name in NAMES if any(score.measure == name for score in scores)]
    groups = dict.fromkeys((score.part, score.model) for score in scores)
    names = [_named(one_line(model, limit=40), part) for part, model in groups]
    title = (
        "answers, 0 to 100; in brackets 95 % of the means of resampled "
        f"{'clients' if held else 'rows'}"
    )
    if several:
        title += "\ndifference: to the first line's model, on the same rows"
    headings = []
    for measure in measures:
        headings += ["rows", NAMES[measure], *(["difference"] if several else [])]
    table = numbers("", *headings, title=title, names=names)
    cells = {(score.part, score.model, score.measure): score for score in scores}
    for name, group in zip(names, groups, strict=True):
        line = []
        for measure in measures:
            score = cells.get((*group, measure))
            line += _cells(score, several) if score else [""] * (2 + several)
        table.add_row(name, *line)
    return table


def _cells(score: "Score", several: bool) -> list[str]:
    difference = (score.difference, score.difference_low, score.difference_high)
    return [
        f"{score.rows:,}",
        _mean(score),
        *([_interval(*difference, _signed)] if several else []),
    ]


def _named(name: str, part: str) -> str:
    return name if part == "trained" else f"{name}, {part}"


def _mean(score: "Score") -> str:
    return _interval(score.mean, score.low, score.high)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.1f}"


def _interval(mean: float, low: float, high: float, text: Callable[[float], str] = _number) -> str:
    """``12.3 [9.1, 15.8]``, less what is not known."""
    return text(mean) if math.isnan(low) else f"{text(mean)} [{text(low)}, {text(high)}]"
