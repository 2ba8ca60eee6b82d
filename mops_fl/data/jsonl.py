"""JSON files of rows: an object a line, objects spread over lines, or an array; UTF-8.

The schema is recognised by the columns (`columns.py`); further columns are allowed.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mops_fl.config import DataConfig
from mops_fl.data.columns import Columns, Row, cell, recognise
from mops_fl.data.examples import (
    DEFAULT_TASK,
    RENAMED_TASK,
    Rows,
    UnusableError,
    in_order,
    is_missing,
    listed,
    owner_of,
    task_of,
)
from mops_fl.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")


def load(data: DataConfig, _seed: int, owner_column: str) -> tuple[Rows, tuple[str, ...]]:
    """The rows of `data-path`; tasks are the categories found, sorted, unless `tasks` names some.

    Raises:
        DataError: the file cannot be read or its columns are not known.
    """
    rows = read(Path(data.data_path))
    return collect(rows, data, owner_column, f"data-path={data.data_path}")


def read(path: Path) -> Sequence[object]:
    """All rows of a file, whatever they are.

    Raises:
        DataError: there is no such file, it has no rows, or it is not JSON.
    """
    values = documents(path, f"data-path={path}")
    rows = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if not rows:
        raise DataError(f"data-path={path} is empty: JSON objects are needed, one for each row")
    return rows


def documents(path: Path, where: str) -> list[object]:
    """The JSON values that a file holds one after the other.

    Raises:
        DataError: the file cannot be read, or is not JSON; `where` names it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error}") from error
    decoder, values, line, counted = json.JSONDecoder(), [], 1, 0
    position = _after_space(text, 0)
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            place = f"{error.msg} in line {error.lineno} at column {error.colno}"
            raise DataError(f"{where}, value of line {line}: malformed JSON: {place}") from error
        except (ValueError, RecursionError):
            fault = "a number of too many digits, or values too deep in one another"
            raise DataError(f"{where}, value of line {line}: unusable JSON: {fault}") from None
        values.append(value)
        position = _after_space(text, end)
    return values


def collect(
    found: Sequence[object],
    data: DataConfig,
    owner_column: str,
    where: str,
    default: tuple[str, ...] = (),
) -> tuple[Rows, tuple[str, ...]]:
    """The rows of the wanted tasks as examples, and these tasks, the unseen ones last.

    Args:
        found: rows, whatever they are.
        data: names tasks, or none.
        owner_column: names the client that owns a row; empty for none.
        where: names the file.
        default: tasks where `data` names none; empty for all that are found.

    Raises:
        DataError: the columns are not known, or there is no owner column.
    """
    objects = [row for row in found if isinstance(row, Mapping)]
    columns = recognise(objects, where)
    _check_column(objects, owner_column, where)
    skipped, labelled = Counter[str](), []
    if strange := len(found) - len(objects):
        skipped["row is not an object"] = strange
    for row in objects:
        try:
            labelled.append((task_of(cell(row, columns.task)), row))
        except UnusableError as reason:
            skipped[str(reason)] += 1
    known = tuple(sorted({task for task, _ in labelled}))
    named = tuple(_named("tasks", name) for name in data.task_list)
    unseen = tuple(_named("unseen-tasks", name) for name in data.unseen_task_list)
    tasks = in_order(named, default or known, unseen)
    rows = Rows(known, _remarks(columns, objects, known), skipped=skipped)
    for task, row in labelled:
        if task in tasks:
            _add(rows, row, columns, task, owner_column)
        else:
            rows.other_tasks += 1
    return rows, tasks


def _add(rows: Rows, row: Row, columns: Columns, task: str, owner_column: str) -> None:
    try:
        owner = owner_of(row.get(owner_column), owner_column) if owner_column else ""
        rows.add(*columns.texts(row), task, owner)
    except UnusableError as reason:
        rows.skipped[str(reason)] += 1


def _named(key: str, name: str) -> str:
    """The task that a name in the configuration means."""
    try:
        return task_of(name)
    except UnusableError as reason:
        raise DataError(f"{key}={name}: {reason}") from None


def _check_column(rows: Sequence[Row], owner_column: str, where: str) -> None:
    if owner_column and not any(owner_column in row for row in rows):
        columns = listed(dict.fromkeys(name for row in rows for name in row))
        raise DataError(f"{where}: no column {owner_column}; columns found: {columns or 'none'}")


def _remarks(columns: Columns, rows: Sequence[Row], known: tuple[str, ...]) -> list[str]:
    remarks = [columns.remark()]
    if not columns.task:
        remarks.append(f"no column of a task, so all rows are one task, {DEFAULT_TASK!r}")
    elif missing := sum(_no_task(row.get(columns.task)) for row in rows):
        remarks.append(f"{missing:,} rows have no {columns.task} and are task {DEFAULT_TASK!r}")
    if RENAMED_TASK in known:
        remarks.append(f"a task with the name of the total is called {RENAMED_TASK!r}")
    return remarks


def _no_task(category: object) -> bool:
    return is_missing(category) or (isinstance(category, str) and not category.strip())


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match  # the pattern also matches nothing
    return match.end()
