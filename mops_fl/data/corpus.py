"""The corpus of a run: the rows of the configured dataset, sampled by the seed."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mops_fl.config import DataConfig
from mops_fl.data import dolly, jsonl, skills, superni
from mops_fl.data.examples import Example, Rows, listed
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
    """In expert order: as named in `tasks`, else the dataset's own; the unseen ones last."""
    skipped: dict[str, int]
    """Rows that could not be used, by reason."""
    digest: str
    """SHA-256 over the examples in their order, in hexadecimal."""
    source: str = ""
    """What was read and how it was understood, in one line."""
    warnings: tuple[str, ...] = ()
    """What the user should see besides."""
    unseen_tasks: tuple[str, ...] = ()
    """Tasks that nobody trains on: the last of `tasks`."""

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """The others, in expert order."""
        return self.tasks[: len(self.tasks) - len(self.unseen_tasks)]

    @cached_property
    def task_numbers(self) -> np.ndarray:
        """The place in `tasks` of each example's task, shape (examples,)."""
        places = {task: place for place, task in enumerate(self.tasks)}
        return np.array([places[example.task] for example in self.examples], dtype=np.int64)

    @property
    def trained(self) -> np.ndarray:
        """Sorted indices of the examples of trained tasks."""
        return np.flatnonzero(self.task_numbers < len(self.trained_tasks))

    @property
    def unseen(self) -> np.ndarray:
        """Sorted indices of the examples of unseen tasks."""
        return np.flatnonzero(self.task_numbers >= len(self.trained_tasks))


def load_corpus(
    data: DataConfig,
    seed: int,
    owner_column: str = "",
    *,
    own_data: bool = False,
    least_rows: int = 0,
) -> Corpus:
    """Load the dataset, keep its tasks, and draw `num-samples` examples uniformly by the seed.

    Where there are fewer than `num-samples`, all are taken. The same share of the rows of each
    unseen task is drawn besides, at least one; these examples come last.

    Args:
        data: the dataset, and how much of it.
        seed: the run's seed.
        owner_column: column whose value names the client that owns a row; empty for none.
        own_data: the rows are those of one client, which need not have every task of the run, and
            which `num-samples`, of what is divided among all, does not limit.
        least_rows: tasks with fewer usable rows are left out.

    Raises:
        ConfigError: a task is named twice, or all are unseen.
        DataError: the data cannot be read, a named task has no usable rows (not with `own_data`),
            or there are too few usable rows for a client.
    """
    rows, tasks = SOURCES[data.dataset](data, seed, owner_column)
    if least_rows:
        tasks = _leave_out_small(rows, tasks, least_rows, data)
    if len(set(tasks)) < len(tasks):
        unseen_too = f" and unseen-tasks={data.unseen_tasks}" * bool(data.unseen_tasks)
        raise ConfigError(f"tasks={data.tasks}{unseen_too}: a task is named twice")
    trained = tasks[: len(tasks) - len(data.unseen_task_list)]
    unseen = tasks[len(trained) :]
    usable = [example for example in rows.examples if example.task not in unseen]
    if own_data:
        data = replace(data, num_samples=0)
        _settle_own(data, rows, len(usable))
    else:
        _check_tasks(data, rows, trained, unseen)
    drawn = _draw(data, usable, seed)
    apart = [example for example in rows.examples if example.task in unseen]
    examples = drawn + _draw_unseen(apart, unseen, len(drawn) / len(usable), seed)
    skipped = dict(sorted(rows.skipped.items()))
    source = _describe(data, rows, trained, len(drawn), len(usable))
    if unseen:
        beside = f"{len(examples) - len(drawn):,} of {len(apart):,} rows drawn"
        source += f"; {len(unseen)} unseen tasks: {listed(unseen)}: {beside}"
    warnings = _warnings(rows)
    return Corpus(examples, tasks, skipped, _digest(examples), source, warnings, unseen)


def _leave_out_small(
    rows: Rows, tasks: tuple[str, ...], least: int, data: DataConfig
) -> tuple[str, ...]:
    """Leave out the rows of tasks that have too few, and the names of those that nobody named."""
    counts = Counter(example.task for example in rows.examples)
    large = [example for example in rows.examples if counts[example.task] >= least]
    if left := len(rows.examples) - len(large):
        rows.skipped[f"task has fewer than {least} rows"] = left
        rows.examples = large
    named = (*data.task_list, *data.unseen_task_list)
    return tuple(task for task in tasks if counts[task] >= least or task in named)


def load_server_data(data: DataConfig, seed: int) -> Corpus:
    """All rows of `server-data`, which need not have every task of the run.

    Raises:
        DataError: as `load_corpus`, of the server's rows.
    """
    own = replace(data, data_path=data.server_data)
    try:
        return load_corpus(own, seed, own_data=True)
    except DataError as error:
        raise DataError(f"server-data: {error}") from error


def _check_tasks(
    data: DataConfig, rows: Rows, trained: tuple[str, ...], unseen: tuple[str, ...]
) -> None:
    """Refuse tasks without rows: all that are named, or that lack their file."""
    if unseen and not trained:
        raise ConfigError(
            f"unseen-tasks={data.unseen_tasks}: no task is left to train on; the dataset's tasks "
            f"are {listed(rows.known)}"
        )
    present = {example.task for example in rows.examples}
    absent = [task for task in trained if task not in present]
    named = absent if data.task_list else [task for task in absent if task in rows.faults]
    if named or not present.intersection(trained):
        _refuse_tasks(f"tasks={data.tasks or listed(trained)}", data, rows, named or absent)
    if absent := [task for task in unseen if task not in present]:
        _refuse_tasks(f"unseen-tasks={data.unseen_tasks}", data, rows, absent)


def _refuse_tasks(key: str, data: DataConfig, rows: Rows, absent: Sequence[str]) -> None:
    faults = dict.fromkeys(f"; {rows.faults[task]}" for task in absent if task in rows.faults)
    raise DataError(
        f"{key}: dataset={data.dataset} has no usable row of "
        f"{listed(absent) or 'any task'}{rows.note()}; its tasks are {listed(rows.known) or 'none'}"
        f"{''.join(faults)}"
    )


def _settle_own(data: DataConfig, rows: Rows, usable: int) -> None:
    """Count what is not the run's, and refuse to go on with nothing."""
    if rows.other_tasks:
        rows.skipped["task is not one of the run's"] = rows.other_tasks
        rows.other_tasks = 0
    if unread := [task for task in rows.faults if task in rows.known]:
        rows.skipped["task file cannot be used"] = len(unread)
    if not usable:
        raise DataError(f"data-path={data.data_path} has no usable row{rows.note()}")


def _draw(data: DataConfig, usable: Sequence[Example], seed: int) -> tuple[Example, ...]:
    have = len(usable)
    want = min(data.num_samples or have, have)
    drawn = numpy_generator(seed, "sample").choice(have, size=want, replace=False)
    return tuple(usable[index] for index in sorted(drawn))


def _draw_unseen(
    apart: Sequence[Example], tasks: tuple[str, ...], fraction: float, seed: int
) -> tuple[Example, ...]:
    """The same share of the rows of each task, at least one."""
    generator = numpy_generator(seed, "sample", "unseen")
    drawn: list[int] = []
    for task in tasks:
        places = [place for place, example in enumerate(apart) if example.task == task]
        want = max(1, round(fraction * len(places))) if places else 0
        drawn += generator.choice(places, size=want, replace=False).tolist()
    return tuple(apart[place] for place in sorted(drawn))


def _describe(data: DataConfig, rows: Rows, tasks: tuple[str, ...], drawn: int, have: int) -> str:
    name = f"{data.dataset} {Path(data.data_path).name}".strip()
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
    digest, names = hashlib.sha256(), [field.name for field in fields(Example)]
    for example in examples:
        values = {name: getattr(example, name) for name in names}
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()
