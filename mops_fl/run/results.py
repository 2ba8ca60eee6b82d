"""Reading run folders: what the plots, tables and comparisons stand on. Nothing here writes."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mops_fl.errors import RunError
from mops_fl.metrics import TOTAL
from mops_fl.run.folder import COLUMNS

FACTS = ("method", "status", "config", "seed")
"""The keys of `run.json` that every reader may rely on."""


@dataclass(frozen=True)
class Run:
    """A run folder; each table is read, and checked, when it is first asked for."""

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The run in `folder`.

        Raises:
            RunError: it is not a run folder, or its `run.json` is malformed.
        """
        if not folder.is_dir():
            raise RunError(f"{folder} is not a run folder: there is no such folder")
        return cls(folder, _read_facts(folder / "run.json"))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def method(self) -> str:
        """The method that was trained."""
        return self.facts["method"]

    @property
    def label(self) -> str:
        """Name and method, for legends and headings."""
        return f"{self.name} ({self.method})"

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """Perplexity per evaluated round and task, with task `all` for the total.

        Raises:
            RunError: `rounds.csv` is missing, malformed or has no evaluated round.
        """
        table = _read_table(self.folder, "rounds")
        if TOTAL not in set(table["task"]):
            raise RunError(f"{self.folder / 'rounds.csv'} has no row for the task {TOTAL!r}")
        return table

    @cached_property
    def train(self) -> pd.DataFrame:
        """Work, loss and bytes per round.

        Raises:
            RunError: `train.csv` is missing or malformed.
        """
        return _read_table(self.folder, "train")

    @cached_property
    def gate(self) -> pd.DataFrame:
        """Mean gate weight per evaluated round, task and expert.

        Raises:
            RunError: `gate.csv` is missing, malformed or empty.
        """
        table = _read_table(self.folder, "gate")
        if table.empty:
            raise RunError(f"{self.folder / 'gate.csv'} has no rows: no round was evaluated")
        return table

    def perplexity(self, task: str = TOTAL) -> pd.Series:
        """Perplexity per round of one task, or of all together; rounds are the index."""
        rows = self.rounds[self.rounds["task"] == task]
        return rows.set_index("round")["perplexity"].sort_index()

    @property
    def tasks(self) -> list[str]:
        """The tasks that were evaluated."""
        return [task for task in self.rounds["task"].unique() if task != TOTAL]


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"{path.parent} is not a run folder: it has no {path.name}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    missing = [key for key in FACTS if not isinstance(facts, dict) or key not in facts]
    if missing:
        raise RunError(f"{path} is not a run's: it lacks {', '.join(missing)}")
    return facts


def _read_table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise RunError(f"{folder} has no {path.name}")
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    wanted = COLUMNS[path.name]
    if tuple(table.columns) != wanted:
        raise RunError(
            f"{path} has the columns {', '.join(table.columns)}; expected {', '.join(wanted)}"
        )
    for column in wanted:
        if column != "task" and not pd.api.types.is_numeric_dtype(table[column]):
            raise RunError(f"{path}: column {column} holds something that is not a number")
    return table
