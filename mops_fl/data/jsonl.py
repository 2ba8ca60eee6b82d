"""JSONL files with Dolly's schema: `instruction`, `context`, `response`, `category`.

One JSON object a line, UTF-8; blank lines are passed over and further columns are allowed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mops_fl.config import DataConfig
from mops_fl.data.examples import Rows, owner_of, require_columns
from mops_fl.errors import DataError

COLUMNS = ("instruction", "context", "response", "category")

Row = tuple[str, dict[str, object]]
"""Where a row stands (for error messages), and its columns."""


def load(data: DataConfig, _seed: int, owner_column: str) -> tuple[Rows, tuple[str, ...]]:
    """The rows of `data-path`; tasks are the categories found, sorted, unless `tasks` names some.

    Raises:
        DataError: the file cannot be read or does not have the schema.
    """
    rows = read(Path(data.data_path), owner_column)
    return collect(rows, data.task_list or known_tasks(rows), owner_column)


def read(path: Path, owner_column: str = "") -> list[Row]:
    """All rows of a file.

    Raises:
        DataError: there is no such file, it is empty, or a line is malformed or lacks a column.
    """
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    rows.append((where, _parse(line, where, owner_column)))
    except OSError as error:
        raise DataError(f"data-path={path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"data-path={path} is not UTF-8 text: {error}") from error
    if not rows:
        raise DataError(f"data-path={path} is empty: one JSON object a line is needed")
    return rows


def known_tasks(rows: Sequence[Row]) -> tuple[str, ...]:
    """The categories found, sorted."""
    return tuple(sorted({c for _, row in rows if isinstance(c := row["category"], str)}))


def collect(
    rows: Sequence[Row], tasks: tuple[str, ...], owner_column: str
) -> tuple[Rows, tuple[str, ...]]:
    """The rows of these tasks as examples."""
    kept = Rows(known_tasks(rows))
    for where, row in rows:
        category = row["category"]
        if not isinstance(category, str):
            kept.skipped["category is not text"] += 1
        elif category in tasks:
            owner = owner_of(row, owner_column, where)
            kept.add(row["instruction"], row["context"], row["response"], category, owner)
    return kept, tasks


def _parse(line: str, where: str, owner_column: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: malformed JSON: {error.msg} at column {error.colno}") from error
    return require_columns(row, (*COLUMNS, *filter(None, [owner_column])), where)
