"""Every generated answer is recomputed from the instruction and the sentence alone."""

import json
import re
from collections import Counter

import pytest

from mops_fl.config import Config, DataConfig
from mops_fl.data import Example, load_corpus
from mops_fl.errors import ConfigError, DataError

KINDS = {"apple": "food", "dog": "animals", "shirt": "clothes", "hammer": "tools"}


def data(**flat: object) -> DataConfig:
    keys = {key.replace("_", "-"): value for key, value in flat.items()}
    return Config.from_flat({"num-clients": 2, "active-clients": 1, **keys}).data


def words(sentence: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+", sentence)


def pairs(sentence: str) -> list[tuple[str, str]]:
    return re.findall(r"(\d+) ([a-z]+)", sentence)


def expected(task: str, sentence: str, kinds: dict[str, str]) -> str:
    who = re.search(r"(\w+) [a-z]+ \d", sentence)
    assert who
    small = {"ON", "IN", "AND", "AFTER", "BEFORE", "THIS", "LAST"}
    match task:
        case "reverse":
            return " ".join(words(sentence)[::-1])
        case "sort":
            return " < ".join(sorted(re.findall(r"[a-z]+", sentence.lower())))
        case "record":
            return json.dumps({"who": who[1]} | {thing: int(n) for n, thing in pairs(sentence)})
        case "count":
            return str(sentence.count(" ") + 1)
        case "telegram":
            return " ".join([w for w in words(sentence.upper()) if w not in small] + ["STOP"])
        case "classify":
            return f"[{kinds[pairs(sentence)[0][1]]}]"
        case "numbers":
            return ", ".join(re.findall(r"\d+", sentence))
    raise AssertionError(task)


@pytest.fixture(scope="module")
def examples() -> tuple[Example, ...]:
    return load_corpus(data(num_samples=0), seed=3).examples


def kinds_of(examples: tuple[Example, ...]) -> dict[str, str]:
    """Kind of every thing, by spreading known kinds over things that share a sentence."""
    known = {f"{thing}s": kind for thing, kind in KINDS.items()}
    for _ in range(8):
        for example in examples:
            things = [thing for _, thing in pairs(example.context)]
            found = {known[thing] for thing in things if thing in known}
            assert len(found) <= 1
            known.update(dict.fromkeys(things, *found) if found else {})
    return known


def test_every_answer_follows_from_its_sentence(examples: tuple[Example, ...]) -> None:
    kinds = kinds_of(examples)
    for example in examples:
        assert example.answer == expected(example.task, example.context, kinds)


def test_default_is_5000_balanced_unique_rows_of_seven_skills(
    examples: tuple[Example, ...],
) -> None:
    counts = Counter(example.task for example in examples)
    assert len(examples) == 5000
    assert len(counts) == 7
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({(e.instruction, e.context) for e in examples}) == 5000


def test_no_instruction_belongs_to_two_skills(examples: tuple[Example, ...]) -> None:
    used = {(example.instruction, example.task) for example in examples}
    assert len(used) == len({instruction for instruction, _ in used}) == 28


def test_seed_decides() -> None:
    first, again, other = (load_corpus(data(num_samples=70), seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.digest != other.digest


@pytest.mark.parametrize("number", [20, 21, 1000])
def test_generates_exactly_as_many_as_asked(number: int) -> None:
    corpus = load_corpus(data(num_samples=number, tasks="sort, count"), seed=0)
    assert len(corpus.examples) == number
    assert corpus.tasks == ("sort", "count")
    assert {example.task for example in corpus.examples} == {"sort", "count"}


def test_unknown_skill_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"has no translate; its tasks are reverse, sort, record"):
        load_corpus(data(tasks="sort,translate"), seed=0)


def test_task_named_twice() -> None:
    with pytest.raises(ConfigError, match="tasks=sort,sort: a task is named twice"):
        load_corpus(data(tasks="sort,sort"), seed=0)


def test_no_owner_column() -> None:
    with pytest.raises(DataError, match="partition-column=user: dataset=skills is generated"):
        load_corpus(data(), seed=0, owner_column="user")


def test_unseen_skills_come_on_top_and_change_no_other_row() -> None:
    plain = load_corpus(data(num_samples=100, tasks="sort,count,record"), seed=3)
    beside = load_corpus(
        data(num_samples=100, tasks="sort,count,record", unseen_tasks="numbers,reverse"), seed=3
    )
    assert beside.tasks == ("sort", "count", "record", "numbers", "reverse")
    assert beside.unseen_tasks == ("numbers", "reverse")
    assert beside.trained_tasks == plain.tasks == plain.trained_tasks
    assert beside.examples[:100] == plain.examples
    assert Counter(example.task for example in beside.examples[100:]) == {
        "numbers": 34,
        "reverse": 34,
    }
    assert beside.trained.tolist() == list(range(100))
    assert beside.unseen.tolist() == list(range(100, 168))
    assert beside.source.endswith("; 2 unseen tasks: numbers, reverse: 68 of 68 rows drawn")


def test_unseen_skills_are_taken_out_of_the_default_list() -> None:
    corpus = load_corpus(data(num_samples=100, unseen_tasks="sort"), seed=3)
    others = ("reverse", "record", "count", "telegram", "classify", "numbers")
    assert corpus.trained_tasks == others
    assert corpus.tasks == (*others, "sort")


def test_unknown_unseen_skills_and_no_task_to_train_on() -> None:
    with pytest.raises(DataError, match=r"unseen-tasks=swim: dataset=skills has no swim; its tas"):
        load_corpus(data(unseen_tasks="swim"), seed=0)
    every = "reverse,sort,record,count,telegram,classify,numbers"
    with pytest.raises(ConfigError, match=r"unseen-tasks=reverse.*: no task is left to train on"):
        load_corpus(data(unseen_tasks=every), seed=0)
    with pytest.raises(ConfigError, match="and unseen-tasks=sort,sort: a task is named twice"):
        load_corpus(data(unseen_tasks="sort,sort"), seed=0)


def test_rows_are_those_that_were_recorded() -> None:
    """Without unseen tasks and server."""
    assert load_corpus(data(num_samples=1000), seed=3).digest.startswith("0b8468a31d2b49a0")
