"""Token ids of questions and answers, cut to `max-length` on the question's side first.

A question is tokenised as one text, its tail included. An answer is what follows in the tokens of
question and answer as one text, so that nothing comes between them which the template does not
have. Where a tokenizer joins characters across that seam, the question keeps its own tokens, which
must not depend on the answer, and the answer is tokenised alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mops_fl.data.examples import Example
from mops_fl.data.template import TAIL, head
from mops_fl.data.tokenised import Packer, TokenisedCorpus
from mops_fl.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TOGETHER = 10_000
"""Examples that are tokenised at a time: what a tokenizer gives is far larger than what is kept."""


class _Cut(NamedTuple):
    """One example's token ids, and whether either part was cut."""

    question: list[int]
    answer: list[int]
    question_cut: bool
    answer_cut: bool


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
    start = added_before(tokenizer)
    least = 2 * (len(start) + _tail_length(tokenizer, "x")) - 1
    if max_length < least:
        raise ConfigError(
            f"max-length={max_length} has no room for the prompt template: at least {least} "
            "tokens are needed with this model's tokenizer"
        )
    packer, cut_questions, cut_answers, unknown = Packer(), 0, 0, set()
    for first in range(0, len(examples), _TOGETHER):
        part = examples[first : first + _TOGETHER]
        for place, row in enumerate(_cut(part, tokenizer, start, max_length)):
            cut_questions += row.question_cut
            cut_answers += row.answer_cut
            if vocab_size is not None and max(*row.question, *row.answer) >= vocab_size:
                unknown.add(first + place)
            packer.add(row.question, row.answer, part[place].task)
    return TokenisedCorpus(packer.packed(), cut_questions, cut_answers, frozenset(unknown))


def question_ids(question: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a question as `tokenise` gives them uncut, whatever its answer."""
    return text_ids(head(question) + TAIL, tokenizer)


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a text, behind what the tokenizer puts before every text."""
    (ids,) = _ids(tokenizer, [text])
    return [*added_before(tokenizer), *ids]


def continuation_ids(
    text: str, continuation: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Token ids of a text and of what follows it, joined as those of a question and its answer."""
    before, whole = text_ids(text, tokenizer), text_ids(text + continuation, tokenizer)
    answer = whole[len(before) :]
    if whole[: len(before)] != before or not answer:
        (answer,) = _ids(tokenizer, [continuation])
    return before, answer


def _cut(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    start: list[int],
    max_length: int,
) -> Iterator[_Cut]:
    """Each example as `tokenise` says, behind the ids in `start`."""
    heads = [head(example) for example in examples]
    questions = _ids(tokenizer, [text + TAIL for text in heads])
    answers = _answers(tokenizer, examples, heads, questions)
    for text, ids, answer in zip(heads, questions, answers, strict=True):
        question = [*start, *ids]
        if len(question) + len(answer) <= max_length:
            yield _Cut(question, answer, question_cut=False, answer_cut=False)
            continue
        tail = _tail_length(tokenizer, text)
        budget = max(max_length // 2, max_length - len(question))
        room = max_length - tail - min(len(answer), budget)
        yield _Cut(
            question[:-tail][:room] + question[-tail:],
            answer[:budget],
            question_cut=len(question) - tail > room,
            answer_cut=len(answer) > budget,
        )


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


def added_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
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
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]
