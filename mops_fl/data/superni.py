"""Super-NaturalInstructions (Wang et al. 2022): a folder of the collection's own task files.

A task file is a JSON object with `Definition` (a text, or a list of texts that are joined) and
`Instances` (a list of objects with `input`, a text, and `output`, a text or a list of texts of
which the first is taken as the answer). The name of a task is its file's stem.
"""

from pathlib import Path

from mops_fl.config import DataConfig
from mops_fl.data import jsonl
from mops_fl.data.examples import Rows, UnusableError, in_order, owner_of
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

    A task may be named by its stem or by its number alone (`task044`). A file that is missing or
    of no use leaves its task without rows, and the reason in `Rows.faults`.

    Raises:
        DataError: the folder has no task files, or a number means several.
    """
    folder = Path(data.data_path)
    stems = sorted(path.stem for path in folder.glob("task*.json"))
    if not stems:
        raise DataError(
            f"data-path={folder} holds no task*.json: dataset=superni needs a folder of "
            "Super-NaturalInstructions task files"
        )
    named = tuple(_resolve("tasks", name, stems, folder) for name in data.task_list)
    unseen = tuple(_resolve("unseen-tasks", name, stems, folder) for name in data.unseen_task_list)
    tasks = in_order(named, TASKS, unseen)
    rows = Rows(tuple(stems), ["instruction=Definition, context=input, answer=output, task=file"])
    for task in tasks:
        if task not in stems:
            rows.faults[task] = (
                f"data-path={folder} lacks task files: add them, or name other tasks with tasks=…"
            )
            continue
        try:
            _add_task(rows, folder / f"{task}.json", owner_column)
        except DataError as error:
            rows.faults[task] = str(error)
    return rows, tasks


def _resolve(key: str, name: str, stems: list[str], folder: Path) -> str:
    """The stem that a name means; the name itself where there is none."""
    matches = [stem for stem in stems if stem.startswith(f"{name.rstrip('_')}_")]
    if name in stems or not matches:
        return name
    if len(matches) > 1:
        raise DataError(f"{key}={name} is not unique in {folder}: {', '.join(matches)}")
    return matches[0]


def _add_task(rows: Rows, path: Path, owner_column: str) -> None:
    """Add the instances of a file, or count why they are unusable.

    Raises:
        DataError: the file as a whole is.
    """
    contents = jsonl.documents(path, str(path))
    task = contents[0] if len(contents) == 1 else None
    if not isinstance(task, dict) or not {"Definition", "Instances"} <= task.keys():
        raise DataError(f"{path}: must be one JSON object with Definition and Instances")
    definition, instances = task["Definition"], task["Instances"]
    texts = [definition] if isinstance(definition, str) else definition
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: Definition must be a text or a list of texts")
    if not isinstance(instances, list) or not instances:
        raise DataError(f"{path}: Instances must be a list with at least one instance")
    for instance in instances:
        try:
            _add_instance(rows, "\n".join(texts), instance, path.stem, owner_column)
        except UnusableError as reason:
            rows.skipped[str(reason)] += 1


def _add_instance(
    rows: Rows, definition: str, instance: object, task: str, owner_column: str
) -> None:
    if not isinstance(instance, dict):
        raise UnusableError("row is not an object")
    outputs = instance.get("output")
    answer = next(iter(outputs), None) if isinstance(outputs, list) else outputs
    owner = owner_of(instance.get(owner_column), owner_column) if owner_column else ""
    rows.add(definition, instance.get("input"), answer, task, owner)
