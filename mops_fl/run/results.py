"""Reading run folders: what the plots, tables and comparisons stand on. Nothing here writes."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mops_fl.config import EARLIER, defaults
from mops_fl.errors import RunError
from mops_fl.metrics import TOTAL
from mops_fl.run.folder import COLUMNS, completed, read_facts, read_run_table
from mops_fl.run.spread import Spread, client_losses, deviation, perplexity
from mops_fl.wire.rounds import PrivacySpent

PRIVACY = ("epsilon", "signal to noise")
"""What runs with differential privacy are judged by besides."""

MEASURES = (
    "perplexity",
    "worst 10 %",
    "unseen clients",
    "unseen tasks",
    "parameters",
    "bytes a round",
    "seconds",
    *PRIVACY,
)
"""What runs are judged by: four perplexities, the first over all answer tokens of clients and tasks
that train, the second that of the mean loss of the worst tenth of these clients; the costs; and
with differential privacy ε of all rounds, and the ratio of the longest update to its noise. There
the first perplexity is that of the clients that never train."""


@dataclass(frozen=True)
class Run:
    """A run folder, or what a file holds of one; a table is read when it is first asked for."""

    folder: Path
    """Where it is read from."""
    facts: dict[str, Any]
    tables: Mapping[str, list[tuple]] | None = None
    """Rows by table, where they are not in the folder."""

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
        return self.noted(f"{self.name} ({self.method})")

    @property
    def private(self) -> bool:
        """Whether differential privacy keeps back what clients that train would tell."""
        return self.facts["config"].get("dp", "none") != "none"

    @property
    def privacy(self) -> pd.DataFrame:
        """``epsilon``, ``delta``, ``clip``, ``noise``, ``clipped_share`` and ``snr`` by round.

        `mops_fl.wire.rounds.PrivacySpent` says what they are. Empty without differential privacy.
        """
        columns = [field.name for field in fields(PrivacySpent)]
        return self.train.set_index("round")[columns].dropna(subset="epsilon")

    def noted(self, label: str) -> str:
        """A label, and with differential privacy whose perplexity it is, and the larger federation
        that the noise stands for, where it does.
        """
        cohort = self.facts["config"].get("noise-cohort", 0)
        notes = ["clients that never train"] if self.private else []
        notes += [f"noise as of {cohort:,} clients a round"] if cohort else []
        return f"{label} ({'; '.join(notes)})" if notes else label

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
        """Work, loss and bytes per round; empty where nothing was trained.

        Raises:
            RunError: `train.csv` is malformed.
        """
        return self._later_table("train.csv")

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

    @cached_property
    def validation(self) -> pd.DataFrame:
        """Losses per evaluated round, client and task on rows held back for choosing; may be empty.

        Raises:
            RunError: `validation.csv` is malformed.
        """
        return self._later_table("validation.csv")

    @cached_property
    def personal(self) -> pd.DataFrame:
        """Losses per client and task after each client's own last steps; may be empty.

        Raises:
            RunError: `personal.csv` is malformed.
        """
        return self._later_table("personal.csv")

    @property
    def result_round(self) -> int:
        """The round that counts as the run's result: the one that was kept, else the last."""
        kept = self.facts.get("kept_round")
        return int(self.perplexity().index[-1] if kept is None else kept)

    def part(
        self, table: pd.DataFrame, *, unseen_clients: bool = False, unseen_tasks: bool = False
    ) -> pd.DataFrame:
        """Rows of clients that train, or of those that never do; of trained tasks, or of others.

        Without options: what the total in `rounds` is the sum of, unless the run is `private`.
        """
        clients = table["partition"].isin(self.facts.get("unseen_clients") or ())
        tasks = table["task"].isin(self.facts.get("unseen_tasks") or ())
        return table[(clients == unseen_clients) & (tasks == unseen_tasks)]

    def standard_error(self, task: str | None = None) -> pd.Series:
        """How far a round's mean loss may be from that of other clients, in nats a token.

        Clients are what was sampled, not tokens: the standard error of the ratio of two sums over
        clients (Cochran, Sampling Techniques, 1977, section 6.4). Without two clients, NaN.
        """
        if task is None:
            table = self.part(self.evaluation, unseen_clients=self.private)
        else:
            unseen = task in (self.facts.get("unseen_tasks") or ())
            table = self.part(
                self.evaluation, unseen_clients=self.private, unseen_tasks=unseen
            ).query("task == @task")
        sums = table.groupby(["round", "partition"])[["nll", "tokens"]].sum()
        if sums.empty:
            return pd.Series(dtype=float)
        return sums.groupby("round").apply(_ratio_error).astype(float)

    @property
    def held_out(self) -> tuple[int, int]:
        """Clients and held-out rows that the total of every evaluation asks for."""
        rows = self._held_out_rows(self.private)
        return len(rows), int(rows.sum())

    def losses(self, number: int | None = None, *, unseen_clients: bool = False) -> pd.Series:
        """Loss of each client in nats an answer token, by partition, on the tasks that train.

        Args:
            number: an evaluated round; None for `result_round`.
            unseen_clients: of the clients that never train instead of those that do.
        """
        table = self._evaluated(self.result_round if number is None else number)
        return client_losses(self.part(table, unseen_clients=unseen_clients))

    def spread(self, number: int | None = None, *, unseen_clients: bool = False) -> Spread | None:
        """How the losses of clients lie in a round, on the tasks that were trained.

        Args:
            number: as `losses` has it.
            unseen_clients: as `losses` has it.

        Returns:
            None where no client's losses are known.
        """
        losses = self.losses(number, unseen_clients=unseen_clients)
        return Spread.of(losses, self._held_out_rows(unseen_clients)) if len(losses) else None

    def personalised(self) -> "Personalised | None":
        """The clients of `personal` before and after their own last steps; None without any."""
        after = self.part(self.personal)
        before = self.part(self._evaluated(self.result_round))
        before = before[before["partition"].isin(after["partition"])]
        after = after[after["partition"].isin(before["partition"])]
        if after["tokens"].sum() == 0 or before["tokens"].sum() == 0:
            return None
        rows = self._held_out_rows()
        spreads = (Spread.of(client_losses(table), rows) for table in (before, after))
        return Personalised(perplexity(before), perplexity(after), *spreads)

    def validation_perplexity(self) -> pd.Series:
        """Perplexity per round on the rows held back for choosing; rounds are the index."""
        return self.part(self.validation).groupby("round")[["nll", "tokens"]].apply(perplexity)

    def diagnostics(self) -> pd.DataFrame:
        """The mixture, a line a round; a column for each of these whose table is there.

        ``entropy``: of the gate in nats, mean over tasks, at most ln E. ``largest load``: the
        largest share of an expert, over all tasks alike; 1/E at least. ``cosine`` and ``update
        cosine``: between the clients' versions of an expert, and between how they moved it, mean
        over experts.
        """
        load = self._later_table("load.csv").groupby(["round", "expert"])["load"].mean()
        drift = self._later_table("drift.csv").groupby("round")[["cosine", "update_cosine"]].mean()
        columns = {
            "entropy": self._later_table("entropy.csv").groupby("round")["entropy"].mean(),
            "largest load": load.groupby("round").max(),
            "cosine": drift["cosine"],
            "update cosine": drift["update_cosine"],
        }
        return pd.DataFrame({name: each for name, each in columns.items() if len(each)})

    @property
    def machine(self) -> str:
        """Where it ran: the server's processor, and the clients' device where that is another."""
        found = self.facts.get("machine", {})
        where = f"{found.get('processor', 'a machine')}, {found.get('cores', '?')} cores"
        devices = re.sub(r"cuda:\d+", "cuda", self.facts.get("device", "cpu")).split(", ")
        return ", ".join([where, *sorted({*devices} - {"cpu"})])

    def costs(self) -> pd.DataFrame:
        """What training took up to and with each round: ``bytes`` both ways and ``seconds``."""
        table = self.train.set_index("round")
        spent = pd.DataFrame(
            {"bytes": table["bytes_up"] + table["bytes_down"], "seconds": table["seconds"]}
        )
        start = pd.DataFrame({"bytes": [0], "seconds": [0.0]}, index=[0])
        return pd.concat([start, spent.sort_index()]).cumsum()

    def measures(self) -> dict[str, float]:
        """What a run is judged by, at `result_round`: `MEASURES`, NaN where one is not known."""
        table, spread = self._evaluated(self.result_round), self.spread()
        facts = (self.facts.get(key) for key in ("trainable_parameters", "bytes_per_round"))
        spent = self.privacy[["epsilon", "snr"]].to_numpy()
        values = (
            float(self.perplexity()[self.result_round]),
            spread.worst.perplexity if spread else math.nan,
            perplexity(self.part(table, unseen_clients=True)),
            perplexity(self.part(table, unseen_tasks=True)),
            *(math.nan if fact is None else float(fact) for fact in facts),
            float(self.facts.get("seconds", math.nan)),
            *(map(float, spent[-1]) if len(spent) else (math.nan, math.nan)),
        )
        return dict(zip(MEASURES, values, strict=True))

    def perplexity(self, task: str | None = None) -> pd.Series:
        """Perplexity per round of one task, or of all together; rounds are the index."""
        return self._curve("perplexity", task)

    def share(self, task: str | None = None) -> pd.Series:
        """Share of the held-out answer tokens behind each round's perplexity.

        1 where all clients that the run began with were evaluated; NaN in a folder of an older
        version.
        """
        return self._curve("share", task)

    def _curve(self, column: str, task: str | None) -> pd.Series:
        total = self._is_total(self.rounds)
        wanted = total if task is None else ~total & (self.rounds["task"] == task)
        return self.rounds[wanted].set_index("round")[column].sort_index()

    @property
    def tasks(self) -> list[str]:
        """The tasks that were evaluated."""
        return [*self.rounds[~self._is_total(self.rounds)]["task"].unique()]

    @staticmethod
    def _is_total(rounds: pd.DataFrame) -> pd.Series:
        """The rows of the total, by their place: a task may have its name."""
        return ~rounds["round"].duplicated()

    def _evaluated(self, number: int) -> pd.DataFrame:
        """The rows of one round in `evaluation`."""
        return self.evaluation[self.evaluation["round"] == number]

    def _held_out_rows(self, unseen_clients: bool = False) -> pd.Series:
        """Rows of the trained tasks that an evaluation asks of each client, by partition."""
        most = self.facts["config"].get("eval-samples", 0)
        table = self.part(self._table("partition.csv"), unseen_clients=unseen_clients)
        tests = table.groupby("partition")["test"].sum()
        return tests.clip(upper=most) if most else tests

    def _later_table(self, name: str) -> pd.DataFrame:
        """A table that not every run has, or that older versions did not write; else empty."""
        if not self.has(name):
            return pd.DataFrame(columns=[*COLUMNS[name]]).astype(COLUMNS[name])
        return self._table(name)

    @cached_property
    def _read(self) -> dict[str, pd.DataFrame]:
        """The tables that were asked for."""
        return {}

    def _table(self, name: str) -> pd.DataFrame:
        if name not in self._read:
            columns = COLUMNS[name]
            self._read[name] = pd.DataFrame(self.rows(name), columns=[*columns]).astype(columns)
        return self._read[name]

    def table(self, name: str) -> pd.DataFrame:
        """Any table of `mops_fl.run.folder.COLUMNS`, as ``drift.csv``; empty where there is none.

        Raises:
            RunError: no run has a table of that name, or it is malformed.
        """
        if name not in COLUMNS:
            raise RunError(f"no run has a table {name!r}: there are {', '.join(COLUMNS)}")
        return self._later_table(name)

    def has(self, name: str) -> bool:
        """Whether there is a table."""
        return (self.folder / name).is_file() if self.tables is None else name in self.tables

    def rows(self, name: str) -> list[tuple]:
        """A table as it was written.

        Raises:
            RunError: it is missing or malformed.
        """
        if self.tables is None:
            return read_run_table(self.folder / name)
        if name not in self.tables:
            raise RunError(f"{self.folder} has no {name}")
        return completed(name, self.tables[name])


@dataclass(frozen=True)
class Personalised:
    """Clients before and after steps of their own from the global tensors."""

    perplexity_before: float
    """Over all their answer tokens."""
    perplexity_after: float
    before: Spread
    after: Spread


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds."""

    mean: float
    sd: float
    """Sample standard deviation; NaN for one seed."""
    n: int
    """Seeds that have the figure."""


@dataclass(frozen=True)
class Replicates:
    """Runs of one configuration that differ in their seeds only; most often one run.

    Raises:
        RunError: there is none, they differ in more than the seed, or two have the same.
    """

    label: str
    """What the configuration is called in headings and legends."""
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise RunError(f"{self.label}: there is no run")
        first, *others = self.runs
        for run in others:
            if different := differences(first.facts["config"], run.facts["config"]):
                raise RunError(
                    f"{first.folder} and {run.folder} differ in {', '.join(different)}: "
                    "only runs that differ in nothing but the seed are averaged"
                )
        seeds = [run.facts["seed"] for run in self.runs]
        if len({*seeds}) < len(seeds):
            folders = ", ".join(str(run.folder) for run in self.runs)
            raise RunError(f"{folders}: two of them have the same seed, which counts once")

    def curves(self, task: str | None = None) -> pd.DataFrame:
        """Perplexity per round that all runs evaluated, a column for each run."""
        return _aligned(run.perplexity(task) for run in self.runs)

    def shares(self, task: str | None = None) -> pd.Series:
        """`Run.share` per round where it is below 1, the least of all runs."""
        least = pd.concat([run.share(task) for run in self.runs]).groupby(level=0).min()
        return least[least < 1]

    def validation_curves(self) -> pd.DataFrame:
        """The same on the rows held back for choosing."""
        return _aligned(run.validation_perplexity() for run in self.runs)

    def costs(self, machine: str) -> pd.DataFrame:
        """`Run.costs`, the mean over runs; of the seconds over those on one machine."""
        costs = [
            run.costs() if run.machine == machine else run.costs().assign(seconds=math.nan)
            for run in self.runs
        ]
        return pd.concat(costs).groupby(level=0).mean()

    def diagnostics(self) -> pd.DataFrame:
        """`Run.diagnostics`, the mean over runs."""
        return pd.concat([run.diagnostics() for run in self.runs]).groupby(level=0).mean()

    def estimates(self) -> dict[str, Estimate]:
        """Each of `MEASURES` over the seeds; NaN and 0 seeds where none has it."""
        table = pd.DataFrame([run.measures() for run in self.runs])
        return {
            name: Estimate(float(values.mean()), deviation(values), int(values.count()))
            for name, values in table.items()
        }


UNLIKE = (
    "With differential privacy, perplexity is that of the clients that never train: compare it "
    "with the others' of unseen clients."
)
"""What is said where some runs are private and some are not."""


def unlike(runs: Iterable[Run]) -> bool:
    """Whether some runs are private and some are not."""
    return len({run.private for run in runs}) > 1


def usual_machine(runs: Iterable[Run]) -> str:
    """The machine of most of the runs: seconds of several machines have no common mean."""
    return Counter(run.machine for run in runs).most_common(1)[0][0]


def summary(groups: Iterable[Replicates]) -> dict[str, dict[str, Estimate]]:
    """A row for each configuration: its label, and each of `MEASURES` over its seeds.

    Mean and deviation are those of the figures themselves, one a run. Measures that no run has are
    left out everywhere.
    """
    rows = {group.label: group.estimates() for group in groups}
    known = [name for name in MEASURES if any(row[name].n for row in rows.values())]
    return {label: {name: row[name] for name in known} for label, row in rows.items()}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two configurations differ, but for the seed and the run folder.

    Keys that an older run lacks have the values that it ran with.
    """
    free = ("seed", "run-dir", "resume")
    one, other = {**defaults(), **EARLIER, **one}, {**defaults(), **EARLIER, **other}
    return [key for key in one | other if key not in free and one.get(key) != other.get(key)]


def _aligned(curves: Iterable[pd.Series]) -> pd.DataFrame:
    return pd.concat([*curves], axis=1, join="inner")


def _ratio_error(sums: pd.DataFrame) -> float:
    """Of ``nll / tokens`` over clients, a row each."""
    count, tokens = len(sums), sums["tokens"].sum()
    if count < 2:
        return math.nan
    deviations = sums["nll"] - sums["nll"].sum() / tokens * sums["tokens"]
    return math.sqrt(count / (count - 1) * (deviations**2).sum()) / tokens
