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

_OF_LABELS = ", of tasks whose answers are labels"


def tables(answers: "Sequence[Answer]", scores: "Sequence[Score]") -> Iterable[Table]:
    """All that is told of answers: by task, by client, and last all together."""
    for measure in NAMES:
        if found := [s for s in scores if s.measure == measure and s.task is not None]:
            yield _by_task(measure, found)
    held = {answer.client for answer in answers}
    if len(held) > 1 and None not in held:
        yield _by_client(answers, scores)
    for measure in NAMES:
        if found := [s for s in scores if s.measure == measure and s.task is None]:
            yield _summary(measure, found)


def _by_task(measure: str, scores: "Sequence[Score]") -> Table:
    """A line a task, a column a model."""
    models = [*dict.fromkeys(score.model for score in scores)]
    places = dict.fromkeys((score.part, score.task) for score in scores)
    names = [_named(one_line(task or "", limit=50), part) for part, task in places]
    table = numbers(
        *("task", "rows", *(_short(model) for model in models)),
        title=f"{NAMES[measure]} by task{_OF_LABELS if measure == 'exact' else ''}",
        names=names,
    )
    cells = {(score.part, score.task, score.model): score for score in scores}
    lines = []
    for place in places:
        own = [cells[*place, model] for model in models]
        lines.append([f"{own[0].rows:,}", *(_mean(score) for score in own)])
    return _filled(table, names, lines)


def _by_client(answers: "Sequence[Answer]", scores: "Sequence[Score]") -> Table:
    """How clients fare, one by one."""
    from mops_fl.generation.quality import tenths

    groups = dict.fromkeys((score.part, score.model) for score in scores)
    names = [_named(_short(model), part) for part, model in groups]
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


def _summary(measure: str, scores: "Sequence[Score]") -> Table:
    """A line a model."""
    several = len({score.model for score in scores}) > 1
    units = "clients" if any(score.clients for score in scores) else "rows"
    title = f"{NAMES[measure]}, 0 to 100{_OF_LABELS if measure == 'exact' else ''}"
    title += f"\nin brackets: 95 % of the means of resampled {units}"
    if several:
        title += "\ndifference: to the first line's model, on the same rows"
    names = [_named(_short(score.model), score.part) for score in scores]
    headings = ("rows", NAMES[measure], *(["difference"] if several else []))
    table = numbers("", *headings, title=title, names=names)
    lines = [[f"{score.rows:,}", _mean(score)] for score in scores]
    if several:
        for line, own in zip(lines, scores, strict=True):
            ends = (own.difference_low, own.difference_high)
            line.append(_interval(own.difference, *ends, _signed))
    return _filled(table, names, lines)


def _filled(table: Table, names: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table with lines, no cell of which is broken where there is room for it."""
    for name, line in zip(names, lines, strict=True):
        table.add_row(name, *line)
    for column, cells in zip(table.columns[1:], zip(*lines, strict=True), strict=True):
        column.min_width = max(column.min_width or 0, *map(len, cells))
    return table


def _short(model: str) -> str:
    return one_line(model, limit=60)


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
