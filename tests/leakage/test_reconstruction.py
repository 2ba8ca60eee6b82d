"""What an update shows of a question, and that one of another row shows nothing of it."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.leakage.reconstruction import Reader, Search, Template, answered, bag, guessed
from mops_fl.wire.records import difference


@pytest.fixture(scope="module")
def template(public):
    return Template(public)


def shown_of(victim, reader, row, *, signs):
    if not signs:
        return reader.shown_by(victim.gradient(victim.start, row))
    trained = victim.trained(victim.start, [row], 1, "test").tensors
    return reader.shown_by(difference(trained, victim.start))


def test_the_first_step_of_adam_is_the_sign_of_the_gradient(victim, rows):
    gradient = victim.gradient(victim.start, rows[0])
    step = difference(victim.trained(victim.start, rows[:1], 1, "test").tensors, victim.start)
    rate = victim.config.train.learning_rate
    for name, own in gradient.items():
        plain = np.abs(own) > 1e-4
        assert plain.any()
        np.testing.assert_allclose(step[name][plain], -rate * np.sign(own[plain]), rtol=2e-3)


@pytest.mark.parametrize("signs", [False, True])
def test_the_gates_part_of_an_update_shows_its_input_and_so_the_question(
    victim, rows, public, features, signs
):
    reader = Reader(public, features, signs=signs)
    asked = rows[:20]
    inputs = victim.features(asked)
    for index in (0, 7):
        shown = shown_of(victim, reader, asked[index], signs=signs)
        assert shown @ reader.seen(inputs[index]) == pytest.approx(1, abs=1e-3)
        length = len(asked[index].question)
        fits = [
            reader.fit(shown, length, inputs[[i]], len(row.question))[0]
            for i, row in enumerate(asked)
        ]
        assert np.argmax(fits) == index


def test_words_of_a_question_are_not_found_in_the_update_of_another(
    victim, rows, public, features, template
):
    reader = Reader(public, features, signs=False)
    found, guess = [], []
    for row, other in zip(rows[:20], rows[20:40], strict=True):
        shown = shown_of(victim, reader, other, signs=False)
        words = set(template.inner(row)) - {*template.head, *template.tail}
        count = len(template.inner(row))
        for scores, seen in ((found, shown), (guess, None)):
            likely = bag(reader, template, seen, count)[: len(words)]
            scores.append(len(words & set(likely)) / len(words))
    assert np.mean(found) < np.mean(guess) + 0.1


def test_a_search_ends_with_a_question_that_fits_better_than_a_guess(
    victim, rows, public, features, template
):
    reader, count = Reader(public, features, signs=False), 6
    truth = template.filled(template.inner(rows[0])[:count])
    length = len(truth.question)
    shown = reader.seen(victim.features([truth])[0])
    made = Search(victim, reader, template).rebuilt(shown, count)
    tried = [template.filled(words) for words in (made, guessed(victim, template, count))]
    assert [len(question.question) for question in tried] == [length, length]
    better, worse = reader.fit(shown, length, victim.features(tried), length)
    assert better > worse


def test_an_answer_is_the_one_whose_gradient_the_update_is(victim, rows):
    question = rows[0].question
    words = victim.next_token(question).topk(4).indices.tolist()
    row = replace(rows[0], answer=(words[3], 257))
    plain = {name: -own for name, own in victim.gradient(victim.start, row).items()}
    assert answered(victim, plain, row, signs=False) == (words[3],)
    assert answered(victim, None, row, signs=False) == (words[0],)
