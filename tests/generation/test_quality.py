"""ROUGE-L and exact match, whose answers are labels, and how sure a mean is."""

import math
from dataclasses import replace

import pytest

from mops_fl.data import Example
from mops_fl.generation.quality import Answer, exact_match, label_tasks, rouge_l, scores, tenths


@pytest.mark.parametrize(
    ("reference", "answer", "wanted"),
    [
        ("the cat sat", "the cat sat", 100),
        # stems: cats and cat, sits and sit; 3 of 3 and of 3
        ("The cats sit.", "the cat, sits", 100),
        # "the cat on mat" is common: recall 4/6, precision 4/4
        ("the cat sat on the mat", "the cat on mat", 80),
        # the longest common subsequence of reversed words is one word: 1/3 and 1/3
        ("one two three", "three two one", 100 / 3),
        ("a b", "c d", 0),
        ("something", "", 0),
        ("2 < 3", "2, 3", 100),
        ("東京 大阪", "東京 京都", 50),
        ("東京 大阪", "tokyo", 0),
    ],
)
def test_rouge_l_by_hand(reference, answer, wanted):
    assert rouge_l(reference, answer) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("[Animals]", " animals.\n", True),
        ("A  dog", "a dog", True),
        ("the dog", "dog", False),  # unlike SQuAD's, articles count
        ("yes", "yes, it is", False),
        ("+", "-", False),
        ("+", " +", True),
        ("yes", "", False),
    ],
)
def test_exact_match_is_that_of_super_natural_instructions(reference, answer, same):
    assert exact_match(reference, answer) is same


def test_answers_of_few_kinds_are_labels():
    def rows(task: str, answers: list[str]) -> list[Example]:
        return [Example("Say", "", answer, task) for answer in answers]

    examples = [
        *rows("yes or no", ["Yes", "yes.", "no", "No"] * 3),
        *rows("seldom", ["yes", "no", "no", "no"] * 2),
        *rows("many", [str(n) for n in range(21)] * 10),
        *rows("as many as may be", [str(n) for n in range(20)] * 5),
    ]
    assert label_tasks(examples) == {"yes or no", "as many as may be"}


def answer(model: str, client: int | None, row: int, rouge: float, **changes) -> Answer:
    made = Answer(
        **{"model": model, "client": client, "part": "trained", "task": "sort", "labels": False},
        **{"row": row, "question": "q", "reference": "r", "answer": "a"},
        **{"rouge_l": rouge, "exact": False},
    )
    return replace(made, **changes)


def of(found, **wanted):
    (score,) = [s for s in found if all(getattr(s, k) == v for k, v in wanted.items())]
    return score


def test_means_are_over_rows_and_intervals_over_clients():
    answers = [answer("one", n % 5, n, 10.0 * (n % 5)) for n in range(20)]
    answers += [replace(each, model="two", rouge_l=each.rouge_l + 7) for each in answers]
    found = scores(answers)
    first, second = (of(found, model=name, task=None) for name in ("one", "two"))
    assert (first.mean, first.rows, first.clients) == (20, 20, 5)
    assert first.low < 20 < first.high
    assert first.low >= 0
    assert math.isnan(first.difference)
    # the same clients are drawn for both, so that what all gain is certain
    assert (second.difference, second.difference_low) == (7, pytest.approx(7))
    assert second.difference_high == pytest.approx(7)
    assert repr(scores(answers)) == repr(found)
    # rows of one client are no more than one
    held = [replace(each, client=0) for each in answers]
    assert math.isnan(of(scores(held), model="one", task=None).low)
    alone = of(scores([replace(each, client=None) for each in answers]), model="one", task=None)
    assert alone.high - alone.low < first.high - first.low
    assert alone.clients == 0


def test_exact_match_counts_where_answers_are_labels_and_parts_stay_apart():
    answers = [
        answer("m", 0, 0, 50),
        answer("m", 1, 1, 100, task="kind", labels=True, exact=True),
        answer("m", 2, 2, 0, task="kind", labels=True),
        answer("m", 3, 3, 30, part="unseen clients"),
    ]
    found = scores(answers)
    everywhere = {s.part: s.mean for s in found if s.task is None and s.measure == "rouge_l"}
    assert everywhere == {"trained": 50, "unseen clients": 30}
    assert [(s.task, s.mean, s.rows) for s in found if s.measure == "exact"] == [
        (None, 50, 2),
        ("kind", 50, 2),
    ]


def test_clients_count_once_however_many_rows_they_hold():
    answers = [answer("m", 0, n, 90) for n in range(8)]
    answers += [answer("m", 1 + n, 9 + n, 10.0 * n) for n in range(3)]
    found = tenths(answers)
    assert found == pytest.approx(
        {"clients": 4, "mean": 30, "sd": found["sd"], "worst": 0, "best": 90}
    )
    assert found["sd"] == pytest.approx(math.sqrt((60**2 + 30**2 + 20**2 + 10**2) / 3))
