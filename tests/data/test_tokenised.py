"""Packed token ids against plain tuples, and their sharing by processes of one machine."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from experiments.golden.tiny import byte_tokenizer
from mops_fl.data import Example, TokenisedCorpus, made_by_one, tokenise
from mops_fl.data import tokens as tokens_module
from mops_fl.data.tokenised import Packer, Tokenised
from mops_fl.errors import ConfigError
from mops_fl.files import SHARED_VARIABLE


def examples(count: int) -> list[Example]:
    draw = random.Random(1)
    return [
        Example("i" * draw.randint(1, 90), "", "a" * draw.randint(1, 90), f"task {place % 3}")
        for place in range(count)
    ]


def corpus(count: int = 20, vocab_size: int | None = None) -> TokenisedCorpus:
    return tokenise(examples(count), byte_tokenizer(), 100, vocab_size)


def test_packed_rows_are_the_rows_that_were_added() -> None:
    draw, packer, plain = random.Random(0), Packer(), []
    for place in range(50):
        question, answer = (
            [draw.randrange(2**31) for _ in range(draw.randint(0, 9))] for _ in range(2)
        )
        packer.add(question, answer, f"task {place % 4}")
        plain.append(Tokenised(tuple(question), tuple(answer), f"task {place % 4}"))
    packed = packer.packed()
    assert list(packed) == plain
    assert [packed[place] for place in (0, 49, -1, -50)] == [plain[p] for p in (0, 49, -1, -50)]
    assert (packed[-3:], packed[40:7:-5]) == (plain[-3:], plain[40:7:-5])
    assert {type(token) for row in packed for token in row.question} == {int}
    with pytest.raises(IndexError):
        packed[50]


def test_no_rows() -> None:
    packed = Packer().packed()
    assert (len(packed), list(packed)) == (0, [])


def test_how_many_are_tokenised_at_a_time_changes_nothing(monkeypatch) -> None:
    whole = corpus(20, vocab_size=257)
    assert whole.cut_questions
    assert whole.unknown
    monkeypatch.setattr(tokens_module, "_TOGETHER", 3)
    parts = corpus(20, vocab_size=257)
    assert list(parts.examples) == list(whole.examples)
    for name in ("cut_questions", "cut_answers", "unknown"):
        assert getattr(parts, name) == getattr(whole, name)


def test_what_is_loaded_is_what_was_saved(tmp_path) -> None:
    made = corpus(20, vocab_size=257)
    made.save(tmp_path)
    found = TokenisedCorpus.load(tmp_path)
    assert isinstance(found.examples.ids, np.memmap)
    assert list(found.examples) == list(made.examples)
    for name in ("cut_questions", "cut_answers", "unknown"):
        assert getattr(found, name) == getattr(made, name)


def test_one_of_many_makes_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(SHARED_VARIABLE, str(tmp_path / "shared"))
    calls: list[TokenisedCorpus] = []

    def make() -> TokenisedCorpus:
        calls.append(corpus())
        return calls[-1]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: made_by_one("name", make), range(4)))
    assert len(calls) == 1
    assert all(list(each.examples) == list(calls[0].examples) for each in found)


def test_each_makes_its_own_without_a_place_that_can_be_written(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(SHARED_VARIABLE, raising=False)
    made = corpus()
    assert made_by_one("name", lambda: made) is made
    (tmp_path / "file").touch()
    monkeypatch.setenv(SHARED_VARIABLE, str(tmp_path / "file"))
    assert made_by_one("name", lambda: made) is made


def test_what_cannot_be_made_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(SHARED_VARIABLE, str(tmp_path))

    def refuse() -> TokenisedCorpus:
        raise ConfigError("no room")

    with pytest.raises(ConfigError, match="no room"):
        made_by_one("name", refuse)
