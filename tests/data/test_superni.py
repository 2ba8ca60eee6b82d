"""Folders of Super-NaturalInstructions task files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mops_fl.config import Config, DataConfig
from mops_fl.data import load_corpus
from mops_fl.data.superni import TASKS
from mops_fl.errors import DataError


def data(folder: Path, **flat: object) -> DataConfig:
    keys = {key.replace("_", "-"): value for key, value in {"num_samples": 0, **flat}.items()}
    return Config.from_flat({"dataset": "superni", "data-path": str(folder), **keys}).data


def write(folder: Path, stem: str, instances: object = None, **changes: object) -> None:
    if instances is None:
        instances = [{"id": "i", "input": f"in {stem}", "output": ["first", "second"]}]
    content = {"Definition": ["Do", "this."], "Instances": instances, **changes}
    (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")


def test_definition_input_and_first_output(tmp_path: Path) -> None:
    write(tmp_path, "task1_one")
    example = load_corpus(data(tmp_path, tasks="task1_one"), seed=0).examples[0]
    assert (example.instruction, example.context) == ("Do\nthis.", "in task1_one")
    assert (example.answer, example.task) == ("first", "task1_one")


def test_default_is_the_papers_seven(tmp_path: Path) -> None:
    for stem in (*TASKS, "task999_other"):
        write(tmp_path, stem)
    assert load_corpus(data(tmp_path), seed=0).tasks == TASKS


def test_missing_default_tasks_and_the_fix(tmp_path: Path) -> None:
    for stem in TASKS[1:]:
        write(tmp_path, stem)
    with pytest.raises(
        DataError, match=rf"lacks the task files of {TASKS[0]}; available: task026_.*tasks=…"
    ):
        load_corpus(data(tmp_path), seed=0)


def test_tasks_by_number_in_the_order_named(tmp_path: Path) -> None:
    for stem in ("task1_one", "task10_ten", "task2_two"):
        write(tmp_path, stem)
    assert load_corpus(data(tmp_path, tasks="task2_,task1"), 0).tasks == ("task2_two", "task1_one")


def test_ambiguous_and_unknown_names(tmp_path: Path) -> None:
    write(tmp_path, "task1_one")
    write(tmp_path, "task1_one_more")
    with pytest.raises(
        DataError, match=r"tasks=task1 is not unique in .*: task1_one, task1_one_mo"
    ):
        load_corpus(data(tmp_path, tasks="task1"), seed=0)
    with pytest.raises(DataError, match="lacks the task files of task7; available: task1_one, "):
        load_corpus(data(tmp_path, tasks="task7"), seed=0)


def test_exact_stem_wins_over_a_longer_one(tmp_path: Path) -> None:
    write(tmp_path, "task1_one")
    write(tmp_path, "task1_one_more")
    assert load_corpus(data(tmp_path, tasks="task1_one"), 0).tasks == ("task1_one",)


def test_unusable_instances_are_counted(tmp_path: Path) -> None:
    outputs: list[object] = [["fine"], [], [""], "text", [4]]
    write(tmp_path, "task1_one", [{"input": "x", "output": output} for output in outputs])
    corpus = load_corpus(data(tmp_path, tasks="task1"), seed=0)
    assert len(corpus.examples) == 1
    assert corpus.skipped == {"empty answer": 2, "answer is not text": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Definition": "Do this."}, "task1_one.json: Definition must be a list of texts"),
        ({"instances": []}, "Instances must be a list with at least one instance"),
        ({"instances": [{"input": "x"}]}, "instance 0: no column output; columns found: input"),
        ({"instances": ["x"]}, "instance 0: a row must be a JSON object"),
    ],
)
def test_bad_task_files(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write(tmp_path, "task1_one", **changes)
    with pytest.raises(DataError, match=message):
        load_corpus(data(tmp_path, tasks="task1"), seed=0)


def test_malformed_json_and_missing_keys(tmp_path: Path) -> None:
    (tmp_path / "task1_one.json").write_text('{"Definition": [\n}')
    with pytest.raises(DataError, match=r"task1_one.json: malformed JSON: .*line 2"):
        load_corpus(data(tmp_path, tasks="task1"), seed=0)
    (tmp_path / "task1_one.json").write_text('{"Categories": []}')
    with pytest.raises(DataError, match="no column Definition, Instances; columns found: Categor"):
        load_corpus(data(tmp_path, tasks="task1"), seed=0)


def test_folder_without_task_files(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=r"holds no task\*.json"):
            load_corpus(data(folder), seed=0)


def test_real_superni(real_data: Path) -> None:
    names = ("task023", "task044", "task122", "task1325", "task1509", "task1704", "task861")
    folder = real_data / "super-natural-instructions"
    corpus = load_corpus(data(folder, tasks=",".join(names)), seed=0)
    counts = Counter(example.task for example in corpus.examples)
    assert [counts[task] for task in corpus.tasks] == [1200, 1199, 1200, 1200, 551, 499, 97]
    assert corpus.skipped == {"empty answer": 1}
    with pytest.raises(DataError, match=r"lacks the task files of task001_.*available: task023_"):
        load_corpus(data(folder), seed=0)
