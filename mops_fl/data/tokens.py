"""Token ids of questions and answers, cut to `max-length` on the question's side first."""

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
    """Beginning of sequence (where the tokenizer has one), head, tail."""
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


def tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenisedCorpus:
    """Tokenise examples; question and answer together have at most `max_length` tokens.

    An over-long example keeps the first ``max(max_length // 2, max_length - len(question))`` tokens
    of its answer; then the end of the question's head is cut so that the total is `max_length`.

    Raises:
        ConfigError: `max_length` has no room for the template's tail beside half an answer.
        ModelError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no end-of-sequence token: use another model")
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tail = _ids(tokenizer, [TAIL])[0]
    least = 2 * (len(bos) + len(tail)) - 1
    if max_length < least:
        raise ConfigError(
            f"max-length={max_length} has no room for the prompt template: at least {least} "
            "tokens are needed with this model's tokenizer"
        )
    heads = _ids(tokenizer, [head(example) for example in examples])
    answers = _ids(tokenizer, [example.answer for example in examples])
    tokenised, cut_questions, cut_answers = [], 0, 0
    for example, head_ids, text_ids in zip(examples, heads, answers, strict=True):
        answer = [*text_ids, tokenizer.eos_token_id]
        fixed = len(bos) + len(tail)
        budget = max(max_length // 2, max_length - fixed - len(head_ids))
        room = max_length - fixed - min(len(answer), budget)
        cut_answers += len(answer) > budget
        cut_questions += len(head_ids) > room
        question = (*bos, *head_ids[:room], *tail)
        tokenised.append(Tokenised(question, tuple(answer[:budget]), example.task))
    return TokenisedCorpus(tuple(tokenised), cut_questions, cut_answers)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
