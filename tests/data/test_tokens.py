"""The prompt template, token ids, and the rule by which over-long examples are cut."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from experiments.golden.tiny import byte_tokenizer
from mops_fl.data import Example, tokenise
from mops_fl.data.template import TAIL, head
from mops_fl.errors import ConfigError, ModelError

BOS, EOS = 256, 257


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def example(instruction: str = "Add.", context: str = "", answer: str = "4") -> Example:
    return Example(instruction, context, answer, "sums")


def test_template() -> None:
    assert head(example("Add.", "2 2")) + TAIL == (
        "### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n"
    )
    assert head(example("Add.")) + TAIL == "### Instruction:\nAdd.\n\n### Response:\n"


def test_ids_spell_the_template_and_the_answer(tokenizer) -> None:
    corpus = tokenise([example("Füge.", "2 2", "vier ✓")], tokenizer, 256)
    (found,) = corpus.examples
    assert (found.question[0], found.answer[-1], found.task) == (BOS, EOS, "sums")
    assert tokenizer.decode(found.question[1:]) == head(example("Füge.", "2 2")) + TAIL
    assert tokenizer.decode(found.answer[:-1]) == "vier ✓"
    assert (corpus.cut_questions, corpus.cut_answers) == (0, 0)


def test_no_beginning_of_sequence_where_the_tokenizer_adds_none(tokenizer) -> None:
    bare = byte_tokenizer()
    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    with_bos = tokenise([example()], tokenizer, 256).examples[0]
    assert tokenise([example()], bare, 256).examples[0].question == with_bos.question[1:]


def test_cutting_keeps_the_tail_and_half_an_answer(tokenizer) -> None:
    draw = random.Random(0)
    tail = tuple(tokenizer(TAIL, add_special_tokens=False)["input_ids"])
    for _ in range(400):
        limit = draw.randint(33, 160)
        instruction, context, answer = (
            draw.randint(*ends) for ends in ((1, 200), (0, 99), (1, 200))
        )
        source = example("i" * instruction, "c" * context, "a" * answer)
        corpus = tokenise([source], tokenizer, limit)
        (found,) = corpus.examples
        whole_head = tokenizer(head(source), add_special_tokens=False)["input_ids"]
        whole_question, whole_answer = (BOS, *whole_head, *tail), len(source.answer) + 1
        total = len(found.question) + len(found.answer)
        kept_head = found.question[1 : -len(tail)]

        assert total <= limit
        assert found.question[0] == BOS
        assert found.question[-len(tail) :] == tail
        assert kept_head == tuple(whole_head[: len(kept_head)])
        assert len(found.answer) >= min(whole_answer, limit // 2)
        fits = len(whole_question) + whole_answer <= limit
        cut_answer, cut_question = (
            len(found.answer) < whole_answer,
            found.question != (whole_question),
        )
        assert fits == (not cut_answer and not cut_question)
        assert fits or total == limit
        assert (found.answer[-1] == EOS) == (not cut_answer)
        assert (corpus.cut_questions, corpus.cut_answers) == (cut_question, cut_answer)
        if cut_answer:
            assert len(found.answer) == max(limit // 2, limit - len(whole_question))


def test_counts_and_order(tokenizer) -> None:
    sources = [example(), example("i" * 500), example(answer="a" * 500), example("j" * 500)]
    corpus = tokenise(sources, tokenizer, 100)
    assert (corpus.cut_questions, corpus.cut_answers) == (2, 1)
    assert [len(e.answer) for e in corpus.examples] == [2, 2, 62, 2]


def test_nothing_to_tokenise(tokenizer) -> None:
    assert len(tokenise([], tokenizer, 256).examples) == 0


def test_longer_than_the_tokenizers_own_limit_is_no_warning(tokenizer, caplog) -> None:
    short = byte_tokenizer()
    short.model_max_length = 10
    assert len(tokenise([example("i" * 90)], short, 256).examples[0].question) > 90
    assert caplog.text == ""


def test_max_length_without_room_for_the_template(tokenizer) -> None:
    tokenise([example("i" * 50, answer="a" * 50)], tokenizer, 33)
    with pytest.raises(ConfigError, match=r"max-length=32 has no room .* at least 33 tokens"):
        tokenise([example()], tokenizer, 32)


def test_tokenizer_without_end_of_sequence() -> None:
    bare = byte_tokenizer()
    bare.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        tokenise([example()], bare, 256)


SEAM_TEXTS = [
    example("Add two", "x", "Yes"),
    example("Add.", "", "5 is it.\n\nAnd  two spaces"),
    example("Say </s> and <s>", "in  here ✓", "<s> it is </s> so"),
]


def llama_like(*, joined: bool = False) -> PreTrainedTokenizerFast:
    """As LLaMA-7B's: a space before every text, spaces as ▁, bytes for what is unknown.

    Args:
        joined: it has a token of a newline and the letter Y, which LLaMA's has not.
    """
    letters = sorted({*"▁#:.,", *"abcdefghijklmnopqrstuvwxyzAIRSY"})
    pairs = [("\n", "Y")] if joined else []
    pairs += [("Y", "e"), ("Ye", "s"), ("▁", "Yes"), ("▁", "t"), ("▁", "#")]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    names += [*("\n" * joined), *(left + right for left, right in pairs)]
    model = models.BPE(
        vocab={name: index for index, name in enumerate(dict.fromkeys(names))},
        merges=pairs,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_llamas_tokenizer_gives_the_ids_of_the_whole_text() -> None:
    tokenizer = llama_like()
    rows = tokenise(SEAM_TEXTS, tokenizer, 512).examples
    for source, found in zip(SEAM_TEXTS, rows, strict=True):
        text = head(source) + TAIL
        assert list(found.question) == tokenizer(text)["input_ids"]
        whole = tokenizer(text + source.answer)["input_ids"]
        assert [*found.question, *found.answer] == [*whole, tokenizer.eos_token_id]
        # what follows a special token begins with a space of the tokenizer's own
        assert tokenizer.decode(found.question[1:]) == text or "</s>" in text
    assert tokenizer.convert_ids_to_tokens(list(rows[0].answer)) == ["Yes", "</s>"]


def test_a_tokenizer_that_joins_over_the_seam_does_not_show_the_answer_to_the_question() -> None:
    tokenizer = llama_like(joined=True)
    text = head(SEAM_TEXTS[0]) + TAIL
    assert "\nY" in tokenizer.convert_ids_to_tokens(tokenizer(text + "Yes")["input_ids"])
    answers = ("Yes", "Yet", "no")
    rows = tokenise([example("Add two", "x", a) for a in answers], tokenizer, 512).examples
    assert len({row.question for row in rows}) == 1
    for row, answer in zip(rows, answers, strict=True):
        assert tokenizer.decode(row.answer[:-1]) == answer


def test_cutting_a_llama_row_keeps_its_tail_whole() -> None:
    tokenizer = llama_like()
    source = example("a" * 300, "b" * 50, "c" * 200)
    (found,) = tokenise([source], tokenizer, 120).examples
    assert len(found.question) + len(found.answer) == 120
    assert found.question[0] == tokenizer.bos_token_id
    assert tokenizer.decode(found.question[1:]).endswith("a" + TAIL)


def test_a_token_that_the_model_lacks_costs_its_row_only(tokenizer) -> None:
    padded = byte_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    rows = [example(), example(answer="use [PAD] here"), example("what is [PAD]?"), example()]
    corpus = tokenise(rows, padded, 256, 258)
    assert corpus.unknown == {1, 2}
    assert len(corpus.examples) == 4
    assert tokenise(rows, padded, 256).unknown == frozenset()
    assert tokenise(rows, tokenizer, 256, 258).unknown == frozenset()
