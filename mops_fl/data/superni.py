"""Super-NaturalInstructions (Wang et al. 2022): a folder of the collection's own task files.

A task file is a JSON object with `Definition` (a list of texts) and `Instances` (a list of objects
with `input`, a text, and `output`, a list of texts of which the first is taken as the answer). The
name of a task is its file's stem.
"""

import json
from pathlib import Path

from mops_fl.config import DataConfig
from mops_fl.data.examples import Rows, owner_of, require_columns
from mops_fl.errors import DataError

TASKS = (
    "task001_quoref_question_generation",
    "task026_drop_question_generation",
    "task044_essential_terms_identifying_essential_words",
    "task1190_add_integer_to_list",
    "task1429_evalution_semantic_relation_classification",
    "task1703_ljspeech_textmodification",
    "task698_mmmlu_answer_generation_global_facts",
)
"""The paper's seven (Table 1, in its order) by their ids in the public collection."""


def load(data: DataConfig, _seed: int, owner_column: str) -> tuple[Rows, tuple[str, ...]]:
    """The instances of the task files named in `tasks`, or of the paper's seven.

    A task may be named by its stem or by its number alone (`task044`).

    Raises:
        DataError: the folder or a task file is missing, or a file does not have the schema.
    """
    folder = Path(data.data_path)
    stems = sorted(path.stem for path in folder.glob("task*.json"))
    if not stems:
        raise DataError(
            f"data-path={folder} holds no task*.json: dataset=superni needs a folder of "
            "Super-NaturalInstructions task files"
        )
    tasks = _resolve(data.task_list or TASKS, stems, folder)
    rows = Rows(tuple(stems))
    for task in tasks:
        _add_task(rows, folder / f"{task}.json", owner_column)
    return rows, tasks


def _resolve(names: tuple[str, ...], stems: list[str], folder: Path) -> tuple[str, ...]:
    """The stem that each name means."""
    found: list[str] = []
    missing: list[str] = []
    for name in names:
        by_number = [stem for stem in stems if stem.startswith(f"{name.rstrip('_')}_")]
        matches = [name] if name in stems else by_number
        if len(matches) > 1:
            raise DataError(f"tasks={name} is not unique in {folder}: {', '.join(matches)}")
        (found if matches else missing).append(matches[0] if matches else name)
    if missing:
        raise DataError(
            f"data-path={folder} lacks the task files of {', '.join(missing)}; available: "
            f"{', '.join(stems)}. Add the missing files or name others with tasks=…"
        )
    return tuple(found)


def _add_task(rows: Rows, path: Path, owner_column: str) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: malformed JSON: {error}") from error
    task = require_columns(content, ("Definition", "Instances"), str(path))
    definition, instances = task["Definition"], task["Instances"]
    if not isinstance(definition, list) or not all(isinstance(text, str) for text in definition):
        raise DataError(f"{path}: Definition must be a list of texts")
    if not isinstance(instances, list) or not instances:
        raise DataError(f"{path}: Instances must be a list with at least one instance")
    columns = ("input", "output", *filter(None, [owner_column]))
    for number, instance in enumerate(instances):
        where = f"{path}, instance {number}"
        row = require_columns(instance, columns, where)
        outputs = row["output"]
        answer = (outputs or [""])[0] if isinstance(outputs, list) else None
        owner = owner_of(row, owner_column, where)
        rows.add("\n".join(definition), row["input"], answer, path.stem, owner)
