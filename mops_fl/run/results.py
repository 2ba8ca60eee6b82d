"""Reading run folders: what the plots, tables and comparisons stand on. Nothing here writes."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mops_fl.errors import RunError
from mops_fl.metrics import TOTAL
from mops_fl.run.folder import COLUMNS, read_facts, read_table


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
        return cls(folder, read_facts(folder))

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
        """Perplexity per evaluated round and task; the first row of each round is the total.

        Raises:
            RunError: `rounds.csv` is missing, malformed or has no evaluated round.
        """
        table = self._table("rounds.csv")
        totals = table[self._is_total(table)]
        if table.empty or (totals["task"] != TOTAL).any():
            raise RunError(f"{self.folder / 'rounds.csv'} has no row for the task {TOTAL!r}")
        return table

    @cached_property
    def train(self) -> pd.DataFrame:
        """Work, loss and bytes per round.

        Raises:
            RunError: `train.csv` is missing or malformed.
        """
        return self._table("train.csv")

    @cached_property
    def gate(self) -> pd.DataFrame:
        """Mean gate weight per evaluated round, task and expert.

        Raises:
            RunError: `gate.csv` is missing, malformed or empty.
        """
        table = self._table("gate.csv")
        if table.empty:
            raise RunError(f"{self.folder / 'gate.csv'} has no rows: no round was evaluated")
        return table

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Replies, time and bytes per evaluated round; empty in a folder of an older version.

        Raises:
            RunError: `evaluate.csv` is malformed.
        """
        return self._later_table("evaluate.csv")

    @cached_property
    def evaluation(self) -> pd.DataFrame:
        """Losses per evaluated round, client and task; empty in a folder of an older version.

        Raises:
            RunError: `evaluation.csv` is malformed.
        """
        return self._later_table("evaluation.csv")

    def standard_error(self, task: str | None = None) -> pd.Series:
        """How far a round's mean loss may be from that of other clients, in nats a token.

        Clients are what was sampled, not tokens: the standard error of the ratio of two sums over
        clients (Cochran, Sampling Techniques, 1977, section 6.4). Without two clients, NaN.
        """
        table = self.evaluation if task is None else self.evaluation.query("task == @task")
        sums = table.groupby(["round", "partition"])[["nll", "tokens"]].sum()
        return sums.groupby("round").apply(_ratio_error).astype(float)

    @property
    def held_out(self) -> tuple[int, int]:
        """Clients and held-out rows that every evaluation asks for."""
        most = self.facts["config"].get("eval-samples", 0)
        tests = self._table("partition.csv").groupby("partition")["test"].sum()
        return len(tests), int((tests.clip(upper=most) if most else tests).sum())

    def perplexity(self, task: str | None = None) -> pd.Series:
        """Perplexity per round of one task, or of all together; rounds are the index."""
        total = self._is_total(self.rounds)
        wanted = total if task is None else ~total & (self.rounds["task"] == task)
        return self.rounds[wanted].set_index("round")["perplexity"].sort_index()

    @property
    def tasks(self) -> list[str]:
        """The tasks that were evaluated."""
        return [*self.rounds[~self._is_total(self.rounds)]["task"].unique()]

    @staticmethod
    def _is_total(rounds: pd.DataFrame) -> pd.Series:
        """The rows of the total, by their place: a task may have its name."""
        return ~rounds["round"].duplicated()

    def _later_table(self, name: str) -> pd.DataFrame:
        """A table that older versions did not write; empty where it is missing."""
        if not (self.folder / name).is_file():
            return pd.DataFrame(columns=[*COLUMNS[name]])
        return self._table(name)

    def _table(self, name: str) -> pd.DataFrame:
        columns = COLUMNS[name]
        rows = read_table(self.folder / name, columns)
        return pd.DataFrame(rows, columns=[*columns]).astype(columns)


def _ratio_error(sums: pd.DataFrame) -> float:
    """Of ``nll / tokens`` over clients, a row each."""
    count, tokens = len(sums), sums["tokens"].sum()
    if count < 2:
        return math.nan
    deviations = sums["nll"] - sums["nll"].sum() / tokens * sums["tokens"]
    return math.sqrt(count / (count - 1) * (deviations**2).sum()) / tokens
