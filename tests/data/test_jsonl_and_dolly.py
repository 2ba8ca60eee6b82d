"""Files of rows: their forms, their schemas, rows that cannot be used; and the Dolly dataset."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from mops_fl.config import Config, DataConfig
from mops_fl.data import load_corpus, load_server_data
from mops_fl.errors import ConfigError, DataError


def data(path: Path | str, dataset: str = "jsonl", **flat: object) -> DataConfig:
    keys = {key.replace("_", "-"): value for key, value in {"num_samples": 0, **flat}.items()}
    return Config.from_flat({"dataset": dataset, "data-path": str(path), **keys}).data


def row(number: int, category: str = "b", **changes: object) -> dict[str, object]:
    texts = {"instruction": f"do {number}", "context": "", "response": f"done {number}"}
    return {**texts, "category": category, **changes}


def write(folder: Path, rows: list[object]) -> Path:
    """A file with these rows; a text is a line as it stands."""
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
        row(2, instruction=None),
        row(3, context=["x"]),
        row(4, response=7),
        row(5, response=""),
        row(6, category=[1]),
        row(7, "other", response=""),
        row(8, "x" * 201),
        row(9, "a\x07b"),
        '{"instruction": "do", "response": "half \\ud83d", "category": "b"}',
        '{"instruction": "\\udc00", "response": "done", "category": "b"}',
        '{"instruction": "do", "response": "done", "category": "\\ud83d"}',
        [1],
        "7",
    ]
    corpus = load_corpus(data(write(tmp_path, [row(0), *bad]), tasks="b"), seed=0)
    assert [example.answer for example in corpus.examples] == ["done 0"]
    assert corpus.skipped == {
        "answer has half a character (a lone surrogate)": 1,
        "answer is not text": 1,
        "category has control characters": 1,
        "category has half a character (a lone surrogate)": 1,
        "category is longer than 200 characters": 1,
        "category is not text": 1,
        "context is not text": 1,
        "empty answer": 2,
        "empty instruction": 1,
        "instruction has half a character (a lone surrogate)": 1,
        "row is not an object": 2,
    }
    assert "13 rows skipped: 2 empty answer, 2 row is not an object, 1 answer" in corpus.source
    assert "1 rows of other tasks left out" in corpus.source
    (warning,) = corpus.warnings
    assert warning.startswith("87% of the data cannot be used: 13 rows skipped")


def test_a_whole_emoji_is_no_surrogate(tmp_path: Path) -> None:
    path = write(tmp_path, ['{"prompt": "\\ud83d\\ude00", "response": "ok"}'])
    assert load_corpus(data(path), seed=0).examples[0].instruction == "😀"


def test_few_skipped_rows_are_no_warning(tmp_path: Path) -> None:
    rows = [row(number) for number in range(9)]
    corpus = load_corpus(data(write(tmp_path, [*rows, row(9, response="")])), seed=0)
    assert corpus.warnings == ()
    assert corpus.skipped == {"empty answer": 1}


@pytest.mark.parametrize("missing", [None, float("nan"), "", "absent"])
def test_a_missing_context_is_empty(tmp_path: Path, missing: object) -> None:
    rows = [row(0, context="some"), *(row(number, context=missing) for number in range(1, 5))]
    if missing == "absent":
        for each in rows[1:]:
            del each["context"]
    corpus = load_corpus(data(write(tmp_path, rows)), seed=0)
    assert [example.context for example in corpus.examples] == ["some", "", "", "", ""]
    assert corpus.skipped == {}


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "Thanks"},
]


@pytest.mark.parametrize(
    ("raw", "texts", "remark"),
    [
        (
            {"instruction": "do", "input": "it", "output": "done"},
            ("do", "it", "done"),
            "instruction=instruction, context=input, answer=output; no column of a task, so all",
        ),
        ({"instruction": "do", "output": "done"}, ("do", "", "done"), "answer=output; no column"),
        ({"prompt": "do", "completion": "done"}, ("do", "", "done"), "instruction=prompt, answ"),
        ({"prompt": "do", "response": "done"}, ("do", "", "done"), "answer=response; no column"),
        (
            {"": 0, "question": "do", "answer": "done", "context": "it"},
            ("do", "it", "done"),
            "instruction=question, context=context, answer=answer",
        ),
        ({"input": "do", "output": "done"}, ("do", "", "done"), "instruction=input, answer=output"),
        ({"Question": "do", "Answer": "done"}, ("do", "", "done"), "instruction=Question, answer"),
        (
            {"instruction": "do", "context": None, "output": "done", "response": None},
            ("do", "", "done"),
            "instruction=instruction, answer=output",
        ),
        (
            {"messages": CHAT[1:3], "prompt": "x"},
            ("Hello", "", "Hi"),
            "instruction and answer=turns of messages",
        ),
        ({"messages": CHAT[:3]}, ("Be brief.\n\nHello", "", "Hi"), "turns of messages"),
        (
            {"messages": CHAT},
            ("Be brief.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: Why?", "", "So."),
            "turns of messages",
        ),
        (
            {"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]},
            ("A", "", "B"),
            "turns of conversations",
        ),
    ],
)
def test_schemas_by_their_columns(
    tmp_path: Path, raw: dict[str, object], texts: tuple[str, str, str], remark: str
) -> None:
    corpus = load_corpus(data(write(tmp_path, [raw, raw])), seed=0)
    example = corpus.examples[1]
    assert (example.instruction, example.context, example.answer) == texts
    assert corpus.tasks == ("default",)
    assert remark in corpus.source
    assert "so all rows are one task, 'default'" in corpus.source


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ("hello", "chat is not a list of turns"),
        (["hello"], "chat is not a list of turns"),
        ([], "chat has no turn of the assistant"),
        (CHAT[:2], "chat has no turn of the assistant"),
        (CHAT[2:3], "chat has nothing before the assistant's answer"),
        (CHAT[:1] + CHAT[2:3], "chat has nothing before the assistant's answer"),
        ([{"content": "x"}, CHAT[2]], "chat has a turn without a role"),
        ([CHAT[1], {"role": "assistant", "content": None}], "empty answer"),
        ([CHAT[1], {"role": "assistant", "content": {"a": 1}}], "turn of a chat is not text"),
    ],
)
def test_unusable_chats_are_counted(tmp_path: Path, turns: object, reason: str) -> None:
    path = write(tmp_path, [{"messages": CHAT}, {"messages": turns}])
    assert load_corpus(data(path), seed=0).skipped == {reason: 1}


def test_most_rows_decide_the_schema(tmp_path: Path) -> None:
    strays = [{"prompt": "p", "response": "r", "category": "b"}] * 3
    rows = [{"instruction": "do", "input": str(n), "output": "done", "task": "b"} for n in "abcd"]
    corpus = load_corpus(data(write(tmp_path, [*strays, *rows])), seed=0)
    assert [example.context for example in corpus.examples] == ["a", "b", "c", "d"]
    assert corpus.skipped == {"empty instruction": 3}


def test_labels_become_text(tmp_path: Path) -> None:
    labels = ["1", 1, 2, 1.5, True, None, " ", float("nan"), "a\nb", "  a   b\t", "x/y,[z] $é$"]
    corpus = load_corpus(data(write(tmp_path, [row(0, label) for label in labels])), seed=0)
    found = ["1", "1", "2", "1.5", "true", *["default"] * 3, "a b", "a b", "x/y,[z] $é$"]
    assert [example.task for example in corpus.examples] == found
    assert corpus.tasks == tuple(sorted(set(found)))
    assert "3 rows have no category and are task 'default'" in corpus.source


@pytest.mark.parametrize("tasks", ["", "all,b"])
def test_no_task_has_the_name_of_the_total(tmp_path: Path, tasks: str) -> None:
    path = write(tmp_path, [row(0, "all"), row(1, " all\n"), row(2, "b")])
    corpus = load_corpus(data(path, tasks=tasks), seed=0)
    assert corpus.tasks == ("all (category)", "b")
    assert [example.task for example in corpus.examples] == ["all (category)"] * 2 + ["b"]
    assert "a task with the name of the total is called 'all (category)'" in corpus.source


@pytest.mark.parametrize("form", ["array", "pretty array", "spread", "one line", "bom"])
def test_forms_of_a_file(tmp_path: Path, form: str) -> None:
    rows, path = [row(number) for number in range(3)], tmp_path / "rows.json"
    text = {
        "array": json.dumps(rows),
        "pretty array": json.dumps(rows, indent=2),
        "spread": "\n".join(json.dumps(each, indent=2) for each in rows),
        "one line": " ".join(map(json.dumps, rows)),
        "bom": "\ufeff\r\n" + "\r\n".join(map(json.dumps, rows)),
    }[form]
    path.write_bytes(text.encode())
    answers = [example.answer for example in load_corpus(data(path), seed=0).examples]
    assert answers == ["done 0", "done 1", "done 2"]


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
        ([""], "is empty: JSON objects are needed, one for each row"),
        (["[]"], "is empty: JSON objects are needed"),
        ([row(0), '{"instruction": '], r"value of line 2: malformed JSON: Expecting value in line"),
        ([row(0), '{"instruction": "cut', row(1)], r"line 2: malformed JSON: .* in line 2 at col"),
        (
            [row(0), "", f'{{"x": {"9" * 5000}}}'],
            r"line 3: unusable JSON: a number of too many dig",
        ),
        (["[" * 100_000], r"line 1: unusable JSON: .* or values too deep in one another"),
        ([7, "[1]"], r"no columns of a question and its answer; columns found: none\."),
        (
            [{"prompt": "x", "chosen": "y", "category": "z"}],
            r"no columns of a question and its answer; columns found: prompt, chosen, category\. ",
        ),
        ([row(0, response="")], r"no usable row of b \(1 rows skipped: 1 empty answer\)"),
        ([row(0, category=[])], r"no usable row of any task \(1 rows skipped: 1 category is not"),
    ],
)
def test_bad_files(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_corpus(data(write(tmp_path, rows)), seed=0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "has no value"),
        (" ", "has no value"),
        (True, "is neither text nor a whole number"),
        (1.5, "is neither text nor a whole number"),
        (["SSN 123"], "is neither text nor a whole number"),
        ("\ud83d", "has half a character (a lone surrogate)"),
    ],
)
def test_an_owner_of_no_use_costs_the_row(tmp_path: Path, value: object, reason: str) -> None:
    path = write(tmp_path, [row(0, user="a"), json.dumps(row(1, user=value))])
    corpus = load_corpus(data(path), 0, "user")
    assert [example.owner for example in corpus.examples] == ["a"]
    assert corpus.skipped == {f"partition-column=user {reason}": 1}


def test_missing_owner_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column user; columns found: instruction, context"):
        load_corpus(data(write(tmp_path, [row(0)])), 0, "user")


def test_no_value_of_a_row_is_in_a_message(tmp_path: Path) -> None:
    """Messages of a client leave the device."""
    secret = {"instruction": ["SECRET"], "response": "SECRET", "user": ["SECRET"]}
    for rows, column in ([secret], "user"), ([secret], ""), ([{"x": "SECRET"}], ""):
        with pytest.raises(DataError) as raised:
            load_corpus(data(write(tmp_path, rows)), 0, column)
        assert "SECRET" not in str(raised.value)


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


def test_more_samples_than_rows_are_all_rows(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0), row(1, response=""), row(2)])
    everything, more = (load_corpus(data(path, num_samples=n), seed=0) for n in (0, 5000))
    assert more.examples == everything.examples
    assert more.digest == everything.digest
    assert more.source.endswith("all 2 taken, fewer than num-samples=5000")
    assert everything.source.endswith("all 2 taken")


class TestOwnData:
    """Rows of one client, which the run's server has not seen."""

    def test_other_tasks_are_counted_and_named_ones_may_be_missing(self, tmp_path: Path) -> None:
        path = write(tmp_path, [row(0, "a"), row(1, "x"), row(2, "a")])
        corpus = load_corpus(data(path, tasks="b,a", num_samples=5000), 0, own_data=True)
        assert corpus.tasks == ("b", "a")
        assert [example.task for example in corpus.examples] == ["a", "a"]
        assert corpus.skipped == {"task is not one of the run's": 1}
        assert corpus.warnings

    def test_one_row_is_enough(self, tmp_path: Path) -> None:
        none, one = [row(1, response="")], [row(0)]
        with pytest.raises(DataError, match=r"no usable row \(1 rows skipped: 1 empty answer\)"):
            load_corpus(data(write(tmp_path, none)), 0, own_data=True)
        corpus = load_corpus(data(write(tmp_path, none + one)), 0, own_data=True)
        assert len(corpus.examples) == 1

    def test_the_run_s_number_of_samples_does_not_limit_them(self, tmp_path: Path) -> None:
        path = write(tmp_path, [row(number) for number in range(30)])
        corpus = load_corpus(replace(data(path), num_samples=20), 0, own_data=True)
        assert len(corpus.examples) == 30


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


class TestUnseenTasks:
    """Rows that are loaded to be evaluated only."""

    def test_the_same_share_of_each_is_drawn_beside_the_trained_rows(self, tmp_path: Path) -> None:
        rows = [row(number, "abc"[number % 3]) for number in range(300)]
        new = [row(300 + number, "n") for number in range(40)] + [row(340, "m")]
        plain = load_corpus(replace(data(write(tmp_path, rows)), num_samples=100), seed=3)
        path = write(tmp_path, [*new, *rows])
        settled = replace(data(path, unseen_tasks="n,m"), num_samples=100)
        corpus = load_corpus(settled, seed=3)
        assert corpus.tasks == ("a", "b", "c", "n", "m")
        assert corpus.examples[:100] == plain.examples
        assert Counter(each.task for each in corpus.examples[100:]) == {"n": 13, "m": 1}
        assert corpus.source.endswith("100 of 300 drawn; 2 unseen tasks: n, m: 14 of 41 rows drawn")

    def test_general_qa_is_there_for_it(self, tmp_path: Path) -> None:
        path = write(tmp_path, [row(0, "general_qa"), row(1, "open_qa")])
        corpus = load_corpus(data(path, "dolly", unseen_tasks="general_qa"), seed=0)
        assert len(corpus.trained_tasks) == 7
        assert corpus.tasks[-1:] == corpus.unseen_tasks == ("general_qa",)
        assert [example.task for example in corpus.examples] == ["open_qa", "general_qa"]

    def test_a_name_without_rows(self, tmp_path: Path) -> None:
        path = write(tmp_path, [row(0, "a"), row(1, "b")])
        with pytest.raises(DataError, match=r"unseen-tasks=x: .*no usable row of x; .* are a, b"):
            load_corpus(data(path, unseen_tasks="x"), seed=0)
        with pytest.raises(ConfigError, match="unseen-tasks=a,b: no task is left to train on"):
            load_corpus(data(path, unseen_tasks="a,b"), seed=0)

    def test_own_data_need_not_have_them(self, tmp_path: Path) -> None:
        path = write(tmp_path, [row(0, "a"), row(1, "a"), row(2, "n")])
        corpus = load_corpus(data(path, unseen_tasks="m,n"), 0, own_data=True)
        assert corpus.tasks == ("a", "m", "n")
        assert corpus.unseen.tolist() == [2]
        path = write(tmp_path, [row(2, "n")])
        with pytest.raises(DataError, match="has no usable row"):
            load_corpus(data(path, unseen_tasks="n"), 0, own_data=True)


def test_server_data_are_all_rows_of_their_file(tmp_path: Path) -> None:
    own = write(tmp_path, [row(number, "ab"[number % 2]) for number in range(30)])
    server = own.rename(tmp_path / "server.jsonl")
    path = write(tmp_path, [row(number, "a") for number in range(30)])
    settled = replace(data(path, server_data=str(server)), num_samples=20)
    corpus = load_server_data(settled, seed=0)
    assert (len(corpus.examples), corpus.tasks) == (30, ("a", "b"))
    with pytest.raises(DataError, match=r"server-data: data-path=.*none.jsonl cannot be read"):
        load_server_data(data(path, server_data=str(tmp_path / "none.jsonl")), seed=0)
