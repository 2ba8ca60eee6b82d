"""What run folders say beyond curves: which runs are one, what failed, who holds what."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from mops_fl.run.results import Replicates, Run, differences

COMPLETED = "completed"
"""The status of a run that ended well."""
LONGEST_LABEL = 80
"""Characters that may tell a configuration apart; beyond them its run's name is shorter."""


@dataclass(frozen=True)
class Failure:
    """One client that gave no valid reply in one round."""

    phase: str
    """``training`` or ``evaluation``."""
    round: int
    partition: int
    reason: str


def is_evaluated(run: Run) -> bool:
    """Whether any round was evaluated: runs that have just started have no perplexity yet.

    Raises:
        RunError: `rounds.csv` is malformed.
    """
    return run.has("rounds.csv") and bool(run.rows("rounds.csv"))


def grouped(runs: Iterable[Run]) -> list[Replicates]:
    """The runs by configuration, in the order in which configurations first come.

    Runs that are the same but for the seed are one group. What is not completed is a group of its
    own, since a mean over whole and half runs says nothing; so is another run of a seed.
    """
    groups: list[list[Run]] = []
    for run in runs:
        home = next((group for group in groups if _belongs(run, group)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    return [
        Replicates(label, tuple(own)) for label, own in zip(_labels(groups), groups, strict=True)
    ]


def _belongs(run: Run, group: list[Run]) -> bool:
    return (
        run.facts["status"] == group[0].facts["status"] == COMPLETED
        and not differences(group[0].facts["config"], run.facts["config"])
        and run.facts["seed"] not in {other.facts["seed"] for other in group}
    )


def _labels(groups: list[list[Run]]) -> list[str]:
    """The shortest that tell the groups apart: method, what they differ in, or names of runs."""
    firsts = [group[0] for group in groups]
    apart = {
        key
        for run in firsts
        for key in differences(firsts[0].facts["config"], run.facts["config"])
        if key != "method"
    }
    labels = [_with_values(run, apart) for run in firsts]
    if len({run.method for run in firsts}) == len(firsts):
        labels = [run.method for run in firsts]
    labels = [f"{label}{_suffix(run)}" for label, run in zip(labels, firsts, strict=True)]
    times = Counter(labels)
    named = (
        run.noted(
            label
            if times[label] == 1 and len(label) <= LONGEST_LABEL
            else f"{run.method} ({run.name})"
        )
        for label, run in zip(labels, firsts, strict=True)
    )
    return _numbered([*named])


def _suffix(run: Run) -> str:
    """What is not completed is one run, never a mean."""
    status = run.facts["status"]
    return "" if status == COMPLETED else f" (seed {run.facts['seed']}, {status})"


def _with_values(run: Run, keys: set[str]) -> str:
    """As `compare` writes an entry: the method, and values of its own."""
    own = differences({}, run.facts["config"])
    values = (f"{key}={run.facts['config'].get(key)}" for key in own if key in keys)
    return ":".join([run.method, *values])


def _numbered(labels: list[str]) -> list[str]:
    """The second and later ones of a label with their number."""
    seen: dict[str, int] = {}
    made = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        made.append(label if seen[label] == 1 else f"{label} [{seen[label]}]")
    return made


def failures(run: Run) -> list[Failure]:
    """Who gave no valid reply and why, by round; empty where an older version noted no reasons."""
    return sorted(
        (
            Failure(phase, int(number), int(partition), str(reason))
            for phase, key in (
                ("training", "train_failures"),
                ("evaluation", "evaluation_failures"),
            )
            for number, own in (run.facts.get(key) or {}).items()
            for partition, reason in own.items()
        ),
        key=lambda failure: (failure.round, failure.phase != "training", failure.partition),
    )


def failure_counts(run: Run) -> dict[str, int]:
    """How many replies were missing or invalid, by phase, as the tables count them."""
    tables = {"training": run.train, "evaluation": run.evaluations}
    return {phase: int(table["failures"].sum()) for phase, table in tables.items()}


def holdings(run: Run) -> pd.DataFrame:
    """Rows that each client holds to train on, by partition id (lines) and task (columns).

    Tasks are in the order of the experts; empty where the run has no `partition.csv`.
    """
    return _held(run, "train")


def held_out(run: Run) -> pd.DataFrame:
    """The same of the rows that each client holds out."""
    return _held(run, "test")


def _held(run: Run, column: str) -> pd.DataFrame:
    table = run.table("partition.csv")
    wide = table.pivot_table(index="partition", columns="task", values=column, aggfunc="sum")
    return wide.reindex(columns=table["task"].unique()).fillna(0).astype(int)


def trainings(run: Run) -> pd.DataFrame:
    """Who trained when, a line for each valid reply: ``round`` and ``partition``."""
    return run.table("clients.csv")[["round", "partition"]]
