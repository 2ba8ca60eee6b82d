"""The corpus of a run: the rows of the configured dataset, sampled by the seed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from mops_fl.config import DataConfig
from mops_fl.data import dolly, jsonl, skills, superni
from mops_fl.data.examples import Example, Rows
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


def load_corpus(data: DataConfig, seed: int, owner_column: str = "") -> Corpus:
    """Load the dataset, keep its tasks, and draw `num-samples` examples uniformly by the seed.

    Args:
        data: the dataset, and how much of it.
        seed: the run's seed.
        owner_column: column whose value names the client that owns a row; empty for none.

    Raises:
        ConfigError: `tasks` names a task twice.
        DataError: the data cannot be read, a named task has no usable rows, or there are fewer
            usable rows than `num-samples`.
    """
    rows, tasks = SOURCES[data.dataset](data, seed, owner_column)
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks={data.tasks}: a task is named twice")
    present = {example.task for example in rows.examples}
    absent = [task for task in tasks if task not in present]
    if absent if data.task_list else not present:
        raise DataError(
            f"tasks={data.tasks}: dataset={data.dataset} has no usable row of "
            f"{', '.join(absent)}{rows.note()}; its tasks are {', '.join(rows.known) or 'none'}"
        )
    examples = _draw(data, rows, seed)
    return Corpus(examples, tasks, dict(sorted(rows.skipped.items())), _digest(examples))


def _draw(data: DataConfig, rows: Rows, seed: int) -> tuple[Example, ...]:
    have, want = len(rows.examples), data.num_samples or len(rows.examples)
    if want > have:
        raise DataError(
            f"num-samples={want}, but dataset={data.dataset} has {have} usable rows of these "
            f"tasks{rows.note()}: choose num-samples of at most {have}, or 0 for all"
        )
    drawn = numpy_generator(seed, "sample").choice(have, size=want, replace=False)
    return tuple(rows.examples[index] for index in sorted(drawn))


def _digest(examples: tuple[Example, ...]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(asdict(example)).encode())
    return digest.hexdigest()
