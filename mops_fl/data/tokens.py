"""Token ids of questions and answers, cut to `max-length` on the question's side first.

A question is tokenised as one text, its tail included. An answer is what follows in the tokens of
question and answer as one text, so that nothing comes between them which the template does not
have. Where a tokenizer joins characters across that seam, the question keeps its own tokens, which
must not depend on the answer, and the answer is tokenised alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mops_fl.data.examples import Example
from mops_fl.data.template import TAIL, head
from mops_fl.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokenised:
    """One example as token ids."""

    question: tuple[int, ...]
    """Beginning of sequence (where the tokenizer adds one), head, tail."""
    answer: tuple[int, ...]
    """The answer and the end of sequence; a cut answer has no end of sequence."""
    task: str

    @property
    def fed(self) -> int:
        """Tokens that go through a model: all but the last, which is only predicted."""
        return len(self.question) + len(self.answer) - 1


@dataclass(frozen=True)
class TokenisedCorpus:
    """Token ids of all examples, in their order, and how many of them were cut."""

    examples: tuple[Tokenised, ...]
    cut_questions: int
    cut_answers: int
    unknown: frozenset[int]
    """Indices of examples with a token that the model does not have; not to be used."""

    @property
    def skipped(self) -> dict[str, int]:
        """How many examples are not to be used, by reason."""
        reason = "a token that the model does not have"
        return {reason: len(self.unknown)} if self.unknown else {}


def tokenise(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    vocab_size: int | None = None,
) -> TokenisedCorpus:
    """Tokenise examples; question and answer together have at most `max_length` tokens.

    An over-long example keeps the first ``max(max_length // 2, max_length - len(question))`` tokens
    of its answer; then the end of the question's head is cut so that the total is `max_length`.

    Args:
        examples: in the order of the corpus.
        tokenizer: the model's.
        max_length: tokens.
        vocab_size: tokens of the model, which may be fewer than the tokenizer's.

    Raises:
        ConfigError: `max_length` has no room for the template's tail beside half an answer.
        ModelError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no end-of-sequence token: use another model")
    start = _added_before(tokenizer)
    least = 2 * (len(start) + _tail_length(tokenizer, "x")) - 1
    if max_length < least:
        raise ConfigError(
            f"max-length={max_length} has no room for the prompt template: at least {least} "
            "tokens are needed with this model's tokenizer"
        )
    heads = [head(example) for example in examples]
    questions = _ids(tokenizer, [text + TAIL for text in heads])
    answers = _answers(tokenizer, examples, heads, questions)
    tokenised, cut_questions, cut_answers, unknown = [], 0, 0, set()
    for index, example in enumerate(examples):
        question, answer = [*start, *questions[index]], answers[index]
        if len(question) + len(answer) > max_length:
            tail = _tail_length(tokenizer, heads[index])
            budget = max(max_length // 2, max_length - len(question))
            room = max_length - tail - min(len(answer), budget)
            cut_answers += len(answer) > budget
            cut_questions += len(question) - tail > room
            question = question[:-tail][:room] + question[-tail:]
            answer = answer[:budget]
        if vocab_size is not None and max(*question, *answer) >= vocab_size:
            unknown.add(index)
        tokenised.append(Tokenised(tuple(question), tuple(answer), example.task))
    return TokenisedCorpus(tuple(tokenised), cut_questions, cut_answers, frozenset(unknown))


def _answers(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    heads: list[str],
    questions: list[list[int]],
) -> list[list[int]]:
    """Token ids of each answer after its question, and the end of sequence."""
    texts = [example.answer for example in examples]
    whole = _ids(tokenizer, [f"{text}{TAIL}{a}" for text, a in zip(heads, texts, strict=True)])
    answers = [ids[len(question) :] for ids, question in zip(whole, questions, strict=True)]
    joined = [i for i, ids in enumerate(questions) if whole[i][: len(ids)] != ids or not answers[i]]
    for index, ids in zip(joined, _ids(tokenizer, [texts[i] for i in joined]), strict=True):
        answers[index] = ids
    return [[*ids, tokenizer.eos_token_id] for ids in answers]


def _added_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: the beginning of sequence, or nothing."""
    bare, full = (tokenizer("x", add_special_tokens=add)["input_ids"] for add in (False, True))
    starts = range(len(full) - len(bare) + 1)
    return next((full[:i] for i in starts if full[i : i + len(bare)] == bare), [])


def _tail_length(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens of the template's tail after `text`; one that belongs to both is the tail's."""
    found = tokenizer(
        text + TAIL, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return sum(end > len(text) for _, end in found["offset_mapping"])


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
