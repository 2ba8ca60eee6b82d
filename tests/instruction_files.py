"""Small instruction datasets on disk, in the schemas of Dolly and Super-NaturalInstructions."""

import json
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path


def write_dolly(path: Path, tasks: Iterable[str], rows: int) -> Path:
    """A JSONL file with Dolly's columns, its tasks taking turns."""
    objects = (
        {
            "instruction": f"Say {number} as a {task} would",
            "context": "",
            "response": f"{task}: {number}",
            "category": task,
        }
        for number, task in enumerate(islice(cycle(tasks), rows))
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in objects), encoding="utf-8")
    return path


def write_superni(folder: Path, tasks: Iterable[str], rows: int) -> Path:
    """A folder of Super-NaturalInstructions task files, each of so many instances."""
    folder.mkdir()
    for task in tasks:
        instances = [{"input": f"{task} {n}", "output": [f"answer {n}"]} for n in range(rows)]
        content = {"Definition": [f"Answer as {task}"], "Instances": instances}
        (folder / f"{task}_toy.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
