"""The words of a question from what a round changed in the gate.

The gradient of W₁ is an outer product with the gate's input, which is the mean of the question's
states and constants: the plain gradient tells it up to a factor, Adam's first step only its signs.
The prefix is frozen and causal, so an attacker who has it can try words one after the other, as
DAGER (Petrov et al., 2024, arXiv 2405.15586) does, with the model itself as the prior on language,
as in LAMP (Balunović et al., 2022, arXiv 2202.08827).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from experiments.leakage.victim import Victim, flat
from mops_fl.data import Tokenised
from mops_fl.wire.records import GATE_HIDDEN, Tensors

_FEWEST = 3
"""Public rows that a word must be in to be looked for."""

_PROPOSED = 16
"""Words that the model proposes at a place, and as many that seem to be in the question."""

_PRIOR = 0.005
"""Weight of a word's log-probability beside the fit, which is a cosine."""

_ANSWERS = 8
"""Words that the model proposes at a place of an answer."""

_SHOTS = 3
"""Public rows that the model sees before it proposes words."""

_CONSTANTS = 70
"""Tokens whose weight in a mean the constants have: the vectors of P¹ by default."""


class Reader:
    """What the attacker learns of gate inputs and words from rows of its own."""

    def __init__(
        self, rows: Sequence[Tokenised], features: np.ndarray, *, signs: bool, ridge: float = 0.3
    ) -> None:
        """Fit a Gaussian to the gate inputs, and a mean shift of it to each word.

        Args:
            rows: public.
            features: their gate inputs [rows, d].
            signs: whether only the signs of an input are seen.
            ridge: share of the mean variance that is added to each direction.
        """
        self.signs = signs
        seen = self.seen(features)
        lengths = np.array([len(row.question) for row in rows])
        self._line = np.linalg.lstsq(_terms(lengths), seen)[0]
        covariance = np.cov((seen - self._usual(lengths)).T)
        size = np.trace(covariance) / len(covariance)
        root = np.linalg.cholesky(covariance + ridge * size * np.eye(len(covariance)))
        self._whitening = np.linalg.inv(root)
        places: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            for word in set(row.question):
                places.setdefault(word, []).append(index)
        self.words = np.array(sorted(w for w, found in places.items() if len(found) >= _FEWEST))
        counts = np.array([len(places[word]) for word in self.words])
        shrunk = (counts / (counts + 2))[:, None]
        white = self._white(seen, lengths)
        # [words, d], where a row with the word lies
        self._shifts = np.stack([white[places[word]].mean(0) for word in self.words]) * shrunk
        self.prior = np.log(counts / len(rows))

    def seen(self, features: np.ndarray) -> np.ndarray:
        """What an update shows of gate inputs [..., d], with norm 1."""
        shown = np.sign(features) if self.signs else features
        return shown / np.linalg.norm(shown, axis=-1, keepdims=True)

    def shown_by(self, update: Tensors) -> np.ndarray:
        """The same [d] by an update: the line along which W₁ moved most."""
        line = np.linalg.svd(update[GATE_HIDDEN], full_matrices=False)[2][0]
        return line * np.sign(line @ self._usual(np.array([0]))[0])

    def _usual(self, lengths: np.ndarray) -> np.ndarray:
        """What questions of so many tokens show on average [n, d]."""
        return _terms(lengths) @ self._line

    def _white(self, seen: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """What is unusual of it for its length, in units of its spread [n, d]."""
        return (seen - self._usual(lengths)) @ self._whitening.T

    def presence(self, shown: np.ndarray, length: int) -> np.ndarray:
        """Log-odds up to a constant that each word is in a question of `length` tokens [words]."""
        (white,) = self._white(shown[None], np.array([length]))
        return self._shifts @ white - (self._shifts**2).sum(1) / 2 + self.prior

    def fit(self, shown: np.ndarray, length: int, features: np.ndarray, tried: int) -> np.ndarray:
        """How well gate inputs explain what was shown: cosines of what is unusual [n].

        Args:
            shown: by an update [d].
            length: tokens of its question.
            features: of other questions [n, d].
            tried: tokens of each.
        """
        (target,) = self._white(shown[None], np.array([length]))
        found = self._white(self.seen(features), np.full(len(features), tried))
        return found @ target / (np.linalg.norm(found, axis=1) * np.linalg.norm(target) + 1e-30)


class Template:
    """The words that every question begins and ends with."""

    def __init__(self, rows: Sequence[Tokenised]) -> None:
        """Find them in rows."""
        questions = [row.question for row in rows]
        self.head = _common(questions)
        self.tail = _common([question[::-1] for question in questions])[::-1]
        shots = [(*row.question, *row.answer) for row in rows[:_SHOTS]]
        self.shots = [token for shot in shots for token in shot]
        """Whole rows, one behind the other, for the model to see what questions are like."""

    def inner(self, row: Tokenised) -> tuple[int, ...]:
        """The words that are a row's own."""
        return row.question[len(self.head) : len(row.question) - len(self.tail)]

    def filled(self, inner: Sequence[int]) -> Tokenised:
        """A question without an answer."""
        return Tokenised((*self.head, *inner, *self.tail), (0,), "")


def bag(reader: Reader, template: Template, shown: np.ndarray | None, count: int) -> list[int]:
    """The words that are most likely in a question, those of the template left out.

    Args:
        reader: of updates.
        template: of questions.
        shown: by the update; None to guess without one.
        count: how many words the question has besides, which the attacker is given.
    """
    length = len(template.filled(range(count)).question)
    scores = reader.prior if shown is None else reader.presence(shown, length)
    known = {*template.head, *template.tail}
    return [int(word) for word in reader.words[np.argsort(-scores)] if word not in known]


class Search:
    """Rebuilds questions of which an update shows something."""

    def __init__(self, victim: Victim, reader: Reader, template: Template) -> None:
        """Prepare for any question.

        Args:
            victim: the model.
            reader: of updates.
            template: of questions.
        """
        self._victim, self._reader, self._template = victim, reader, template

    def rebuilt(self, shown: np.ndarray, count: int, passes: int = 1) -> list[int]:
        """A question's words: of what the model and the bag propose, what fits best.

        First one after the other, then in passes over all places in which one may be exchanged.

        Args:
            shown: by the update.
            count: how many words, which the attacker is given.
            passes: over all places.
        """
        likely = bag(self._reader, self._template, shown, count)[:_PROPOSED]
        inner: list[int] = []
        for place in range(count):
            inner = self._better(shown, count, inner, place, likely)
        for _ in range(passes):
            for place in range(count):
                inner = self._better(shown, count, inner, place, likely)
        return inner

    def _better(
        self, shown: np.ndarray, count: int, inner: list[int], place: int, likely: list[int]
    ) -> list[int]:
        """The words with the best one at a place."""
        template = self._template
        chances = self._victim.next_token([*template.shots, *template.head, *inner[:place]])
        words = chances.topk(_PROPOSED).indices.tolist()
        words = list(dict.fromkeys([*inner[place : place + 1], *words, *likely]))
        tried = [template.filled([*inner[:place], word, *inner[place + 1 :]]) for word in words]
        features = self._victim.features(tried, together=len(tried))
        length = len(template.filled(range(count)).question)
        fits = self._reader.fit(shown, length, features, len(tried[0].question))
        best = words[int(np.argmax(fits + _PRIOR * chances[words].numpy()))]
        return [*inner[:place], best, *inner[place + 1 :]]


def guessed(victim: Victim, template: Template, count: int) -> list[int]:
    """A question's words without any update: as the model goes on."""
    inner: list[int] = []
    for _ in range(count):
        chances = victim.next_token([*template.shots, *template.head, *inner])
        inner.append(int(chances.argmax()))
    return inner


def answered(
    victim: Victim, shown: Tensors | None, row: Tokenised, *, signs: bool
) -> tuple[int, ...]:
    """A row's answer, for an attacker who knows its question: word by word, of what the model
    proposes, that of which the gradient is most like the update.

    Args:
        victim: the model.
        shown: the update; None to guess without one, as the model would go on.
        row: its question, its answer's length and its end are known.
        signs: whether the update is Adam's, so that only signs count.
    """
    answer: list[int] = []
    for _ in row.answer[:-1]:
        words = victim.next_token([*row.question, *answer]).topk(_ANSWERS).indices.tolist()
        if shown is None:
            answer.append(words[0])
            continue
        tried = [replace(row, answer=(*answer, word)) for word in words]
        gradients = np.stack([flat(victim.gradient(victim.start, one)) for one in tried])
        found = -np.sign(gradients) if signs else -gradients
        fits = found @ flat(shown) / np.linalg.norm(found, axis=1)
        answer.append(words[int(np.argmax(fits))])
    return tuple(answer)


def _terms(lengths: np.ndarray) -> np.ndarray:
    """Of a line over lengths [n, 2]: a mean over a question and constants goes with its share."""
    return np.stack([np.ones(len(lengths)), lengths / (lengths + _CONSTANTS)], 1)


def _common(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest beginning that all have."""
    shared = []
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return tuple(shared)
