"""JSONL files with Dolly's schema, and the Dolly dataset."""

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from mops_fl.config import Config, DataConfig
from mops_fl.data import load_corpus
from mops_fl.errors import DataError


def data(path: Path | str, dataset: str = "jsonl", **flat: object) -> DataConfig:
    keys = {key.replace("_", "-"): value for key, value in {"num_samples": 0, **flat}.items()}
    return Config.from_flat({"dataset": dataset, "data-path": str(path), **keys}).data


def row(number: int, category: str = "b", **changes: object) -> dict[str, object]:
    texts = {"instruction": f"do {number}", "context": "", "response": f"done {number}"}
    return {**texts, "category": category, **changes}


def write(folder: Path, rows: list[object]) -> Path:
    path = folder / "rows.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_tasks_are_the_sorted_categories(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, "z"), row(1, "a"), row(2, "z")])
    corpus = load_corpus(data(path), seed=0)
    assert corpus.tasks == ("a", "z")
    assert [example.answer for example in corpus.examples] == ["done 0", "done 1", "done 2"]


def test_named_tasks_give_order_and_filter(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, "a"), row(1, "b"), row(2, "c")])
    corpus = load_corpus(data(path, tasks="c, a"), seed=0)
    assert corpus.tasks == ("c", "a")
    assert [example.task for example in corpus.examples] == ["a", "c"]


def test_unusable_rows_are_counted(tmp_path: Path) -> None:
    bad = [
        row(1, response=" \n"),
        row(2, instruction=""),
        row(3, context=None),
        row(4, response=7),
        row(5, response=""),
        row(6, category=None),
        row(7, "other", response=""),
    ]
    corpus = load_corpus(data(write(tmp_path, [row(0), *bad]), tasks="b"), seed=0)
    assert len(corpus.examples) == 1
    assert corpus.skipped == {
        "answer is not text": 1,
        "category is not text": 1,
        "context is not text": 1,
        "empty answer": 2,
        "empty instruction": 1,
    }


def test_unusual_lines(tmp_path: Path) -> None:
    """A byte-order mark, blank lines, Unicode line separators inside texts, further columns."""
    path = write(tmp_path, [row(0, response="a\u2028b\u0085c", more=1), "", row(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [e.answer for e in load_corpus(data(path), seed=0).examples] == [
        "a\u2028b\u0085c",
        "done 1",
    ]


def test_owner_column(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, user="anna"), row(1, user=7)])
    assert [e.owner for e in load_corpus(data(path), 0, "user").examples] == ["anna", "7"]
    assert {e.owner for e in load_corpus(data(path), 0).examples} == {""}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([""], "is empty: one JSON object a line is needed"),
        ([row(0), '{"instruction": '], r"line 2: malformed JSON: Expecting value at column"),
        ([row(0), "", [1]], r"line 3: a row must be a JSON object, but this is list"),
        (
            [{"prompt": "x", "response": "y", "category": "z"}],
            r"line 1: no column instruction, context; columns found: prompt, response, category",
        ),
        ([row(0, response="")], r"no usable row of b \(1 rows skipped: 1 empty answer\)"),
    ],
)
def test_bad_files(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_corpus(data(write(tmp_path, rows)), seed=0)


@pytest.mark.parametrize("value", [None, "", True, 1.5])
def test_bad_owner(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, [row(0, user="a"), row(1, user=value)])
    with pytest.raises(DataError, match=r"line 2: partition-column=user holds"):
        load_corpus(data(path), 0, "user")


def test_missing_owner_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: no column user; columns found: instruction"):
        load_corpus(data(write(tmp_path, [row(0)])), 0, "user")


def test_missing_file_folder_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data-path=.*none.jsonl cannot be read: No such file"):
        load_corpus(data(tmp_path / "none.jsonl"), seed=0)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        load_corpus(data(tmp_path), seed=0)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load_corpus(data(tmp_path / "bytes"), seed=0)


def test_named_task_without_rows(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, "a"), row(1, "b"), row(2, "c", response="")])
    with pytest.raises(DataError, match=r"no usable row of x; its tasks are a, b, c"):
        load_corpus(data(path, tasks="a,x"), seed=0)
    with pytest.raises(DataError, match=r"no usable row of c \(1 rows skipped: 1 empty answer\)"):
        load_corpus(data(path, tasks="a,c"), seed=0)


def test_samples_are_drawn_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, [row(number) for number in range(2000)])
    first, again, other = (load_corpus(data(path, num_samples=1000), s) for s in (0, 0, 1))
    assert first == again
    assert len({example.instruction for example in first.examples}) == 1000
    shared = set(first.examples) & set(other.examples)
    assert 400 < len(shared) < 600
    assert first.digest != other.digest


def test_too_few_rows_says_how_many(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0), row(1, response="")])
    with pytest.raises(
        DataError, match=r"num-samples=5000, .* has 1 usable rows .*1 empty answer.* at most 1"
    ):
        load_corpus(data(path, num_samples=5000), seed=0)


def test_dolly_keeps_the_papers_seven_tasks_in_its_order(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0, "general_qa"), row(1, "open_qa")])
    corpus = load_corpus(data(path, "dolly"), seed=0)
    assert corpus.tasks[:3] == ("creative_writing", "closed_qa", "open_qa")
    assert len(corpus.tasks) == 7
    assert [example.task for example in corpus.examples] == ["open_qa"]


def test_dolly_without_its_categories(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable row of creative_writing.*its tasks are mine"):
        load_corpus(data(write(tmp_path, [row(0, "mine")]), "dolly"), seed=0)


def test_dolly_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, object]]:
        asked.append((name, split))
        return [row(0, "closed_qa")]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_corpus(data("", "dolly"), seed=0).examples[0].answer == "done 0"
    assert asked == [("databricks/databricks-dolly-15k", "train")]


def test_dolly_with_no_hub_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"cannot be reached \(Couldn't.*set data-path to a JSONL"):
        load_corpus(data("", "dolly"), seed=0)


def test_real_dolly(real_data: Path) -> None:
    path = real_data / "dolly-12k.jsonl"
    everything = load_corpus(data(path, "dolly"), seed=0)
    assert len(everything.examples) == 12000 - 1737
    assert everything.skipped == {}
    drawn = load_corpus(data(path, "dolly", num_samples=5000), seed=0)
    counts = Counter(example.task for example in drawn.examples)
    assert counts.keys() == set(drawn.tasks)
    # Uniform over rows: a task's share stays what it is in the whole (2,995 of 10,263).
    assert counts["open_qa"] == pytest.approx(5000 * 2995 / 10263, rel=0.08)
