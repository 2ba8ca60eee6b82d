"""Folders of Super-NaturalInstructions task files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mops_fl.config import Config, DataConfig
from mops_fl.data import load_corpus
from mops_fl.data.superni import TASKS
from mops_fl.errors import ConfigError, DataError


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


def test_missing_default_tasks(tmp_path: Path) -> None:
    for stem in TASKS[1:]:
        write(tmp_path, stem)
    with pytest.raises(
        DataError,
        match=rf"no usable row of {TASKS[0]}; its tasks are task026_.*.*lacks task files: add",
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
    with pytest.raises(DataError, match="no usable row of task7; its tasks are task1_one, "):
        load_corpus(data(tmp_path, tasks="task7"), seed=0)


def test_exact_stem_wins_over_a_longer_one(tmp_path: Path) -> None:
    write(tmp_path, "task1_one")
    write(tmp_path, "task1_one_more")
    assert load_corpus(data(tmp_path, tasks="task1_one"), 0).tasks == ("task1_one",)


def test_files_of_an_earlier_commit(tmp_path: Path) -> None:
    """Texts instead of lists, a byte-order mark, no input."""
    write(tmp_path, "task1_one", [{"input": "1 2", "output": "3"}, {"output": "4"}])
    path = tmp_path / "task1_one.json"
    content = {**json.loads(path.read_text()), "Definition": "Add.", "Positive Examples": [{}]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content, indent=1).encode())
    corpus = load_corpus(data(tmp_path, tasks="task1"), seed=0)
    found = [(each.instruction, each.context, each.answer) for each in corpus.examples]
    assert found == [("Add.", "1 2", "3"), ("Add.", "", "4")]
    assert corpus.skipped == {}


def test_unusable_instances_are_counted(tmp_path: Path) -> None:
    outputs: list[object] = [["fine"], "fine", [], [""], None, [4], 4, {}, [["x"]]]
    instances = [{"input": "x", "output": output} for output in outputs]
    write(tmp_path, "task1_one", [*instances, "x", {"input": "x"}])
    corpus = load_corpus(data(tmp_path, tasks="task1"), seed=0)
    assert len(corpus.examples) == 2
    assert corpus.skipped == {
        "answer is not text": 4,
        "empty answer": 4,
        "row is not an object": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Definition": [1], "Instances": [{}]}', "Definition must be a text or a list of texts"),
        ('{"Definition": "x", "Instances": []}', "Instances must be a list with at least one"),
        ('{"Categories": []}', "must be one JSON object with Definition and Instances"),
        ("{} {}", "must be one JSON object with Definition and Instances"),
        ('{"Definition": [\n}', "value of line 1: malformed JSON: .* in line 2"),
        ("[" * 100_000, "unusable JSON"),
        ('{"Definition": "x", "Instances": [{"input": "x"}]}', r"\(1 rows skipped: 1 empty answer"),
    ],
)
def test_a_bad_file_leaves_its_task_without_rows(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "task1_one.json").write_text(text)
    write(tmp_path, "task2_two")
    write(tmp_path, "task3_three")
    with pytest.raises(DataError, match=rf"(?s)no usable row of task1_one.*{message}"):
        load_corpus(data(tmp_path, tasks="task1,task2"), seed=0)
    own = load_corpus(data(tmp_path, tasks="task1,task2,task3,task4"), seed=0, own_data=True)
    assert own.tasks == ("task1_one", "task2_two", "task3_three", "task4")
    assert [example.task for example in own.examples] == ["task2_two", "task3_three"]
    assert own.skipped in ({"task file cannot be used": 1}, {"empty answer": 1})


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
    with pytest.raises(DataError, match=r"no usable row of task001_.*its tasks are task023_"):
        load_corpus(data(folder), seed=0)


def test_unseen_tasks_by_number(tmp_path: Path) -> None:
    for stem in (*TASKS, "task999_other"):
        write(tmp_path, stem)
    corpus = load_corpus(data(tmp_path, unseen_tasks="task999,task044"), seed=0)
    assert corpus.unseen_tasks == ("task999_other", TASKS[2])
    assert corpus.trained_tasks == (*TASKS[:2], *TASKS[3:])
    assert len(corpus.unseen) == 2
    with pytest.raises(ConfigError, match=r"tasks=task044 and unseen-tasks=task044_.*twice"):
        load_corpus(data(tmp_path, tasks="task044", unseen_tasks=TASKS[2]), seed=0)
