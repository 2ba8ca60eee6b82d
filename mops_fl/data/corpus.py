"""The corpus of a run: the rows of the configured dataset, sampled by the seed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mops_fl.config import DataConfig
from mops_fl.data import dolly, jsonl, skills, superni
from mops_fl.data.examples import Example, Rows, listed
from mops_fl.data.split import LEAST
from mops_fl.errors import ConfigError, DataError
from mops_fl.seeding import numpy_generator

Source = Callable[[DataConfig, int, str], tuple[Rows, tuple[str, ...]]]

SOURCES: dict[str, Source] = {
    "skills": skills.load,
    "dolly": dolly.load,
    "superni": superni.load,
    "jsonl": jsonl.load,
}
"""Dataset name → function of (configuration, seed, owner column) giving its rows and tasks."""


LOUD = 0.1
"""Share of skipped rows above which a warning stands."""


@dataclass(frozen=True)
class Corpus:
    """What a run trains and evaluates on."""

    examples: tuple[Example, ...]
    tasks: tuple[str, ...]
    """In expert order: as named in `tasks`, else the dataset's own."""
    skipped: dict[str, int]
    """Rows that could not be used, by reason."""
    digest: str
    """SHA-256 over the examples in their order, in hexadecimal."""
    source: str = ""
    """What was read and how it was understood, in one line."""
    warnings: tuple[str, ...] = ()
    """What the user should see besides."""


def load_corpus(
    data: DataConfig, seed: int, owner_column: str = "", *, own_data: bool = False
) -> Corpus:
    """Load the dataset, keep its tasks, and draw `num-samples` examples uniformly by the seed.

    Where there are fewer than `num-samples`, all are taken.

    Args:
        data: the dataset, and how much of it.
        seed: the run's seed.
        owner_column: column whose value names the client that owns a row; empty for none.
        own_data: the rows are those of one client, which need not have every task of the run.

    Raises:
        ConfigError: `tasks` names a task twice.
        DataError: the data cannot be read, a named task has no usable rows (not with `own_data`),
            or there are too few usable rows for a client.
    """
    rows, tasks = SOURCES[data.dataset](data, seed, owner_column)
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks={data.tasks}: a task is named twice")
    if own_data:
        _settle_own(data, rows)
    else:
        _check_tasks(data, rows, tasks)
    examples = _draw(data, rows, seed)
    skipped = dict(sorted(rows.skipped.items()))
    source = _describe(data, rows, tasks, len(examples))
    return Corpus(examples, tasks, skipped, _digest(examples), source, _warnings(rows))


def _check_tasks(data: DataConfig, rows: Rows, tasks: tuple[str, ...]) -> None:
    """Refuse tasks without rows: all that are named, or that lack their file."""
    present = {example.task for example in rows.examples}
    absent = [task for task in tasks if task not in present]
    named = absent if data.task_list else [task for task in absent if task in rows.faults]
    if present and not named:
        return
    named = named or absent
    faults = dict.fromkeys(f"; {rows.faults[task]}" for task in named if task in rows.faults)
    raise DataError(
        f"tasks={data.tasks or listed(tasks)}: dataset={data.dataset} has no usable row of "
        f"{listed(named) or 'any task'}{rows.note()}; its tasks are {listed(rows.known) or 'none'}"
        f"{''.join(faults)}"
    )


def _settle_own(data: DataConfig, rows: Rows) -> None:
    """Count what is not the run's, and refuse less than a row to train on and one held out."""
    if rows.other_tasks:
        rows.skipped["task is not one of the run's"] = rows.other_tasks
        rows.other_tasks = 0
    if unread := [task for task in rows.faults if task in rows.known]:
        rows.skipped["task file cannot be used"] = len(unread)
    if len(rows.examples) < LEAST:
        raise DataError(
            f"data-path={data.data_path} has {len(rows.examples)} usable rows{rows.note()}, but a "
            f"client needs at least {LEAST}: one to train on and one held out"
        )


def _draw(data: DataConfig, rows: Rows, seed: int) -> tuple[Example, ...]:
    have = len(rows.examples)
    want = min(data.num_samples or have, have)
    drawn = numpy_generator(seed, "sample").choice(have, size=want, replace=False)
    return tuple(rows.examples[index] for index in sorted(drawn))


def _describe(data: DataConfig, rows: Rows, tasks: tuple[str, ...], drawn: int) -> str:
    have, name = len(rows.examples), f"{data.dataset} {Path(data.data_path).name}".strip()
    parts = [f"{name}: {rows.read:,} rows", *rows.remarks]
    parts.append(f"{len(tasks)} tasks: {listed(tasks)}")
    if rows.other_tasks:
        parts.append(f"{rows.other_tasks:,} rows of other tasks left out")
    if rows.skipped:
        parts.append(rows.skipped_text())
    if drawn < have:
        parts.append(f"{drawn:,} of {have:,} drawn")
    elif have < data.num_samples:
        parts.append(f"all {have:,} taken, fewer than num-samples={data.num_samples}")
    else:
        parts.append(f"all {have:,} taken")
    return "; ".join(parts)


def _warnings(rows: Rows) -> tuple[str, ...]:
    skipped = rows.skipped.total()
    if skipped <= LOUD * rows.read:
        return ()
    return (f"{skipped / rows.read:.0%} of the data cannot be used: {rows.skipped_text()}",)


def _digest(examples: tuple[Example, ...]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(asdict(example)).encode())
    return digest.hexdigest()
