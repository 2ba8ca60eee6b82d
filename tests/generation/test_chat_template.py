"""Chats asked through the chat template, and as training asks them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from experiments.golden.tiny import byte_tokenizer
from mops_fl.data import Example, tokenise
from mops_fl.data.chat import question_and_answer, question_of
from mops_fl.data.examples import UnusableError
from mops_fl.data.tokens import question_ids
from mops_fl.errors import ModelError
from mops_fl.generation.chat_template import put_chat_template


def spaced_tokenizer(scheme: str) -> PreTrainedTokenizerFast:
    """One token a character or byte, as SentencePiece: spaces are ▁, and one begins a text."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "#", "I"]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def bare_tokenizer() -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    made.backend_tokenizer.post_processor = processors.ByteLevel()
    return made


TOKENIZERS = {
    "begins": byte_tokenizer(),
    "bare": bare_tokenizer(),
    "first": spaced_tokenizer("first"),
    "always": spaced_tokenizer("always"),
}
for each in TOKENIZERS.values():
    put_chat_template(each)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", " \n", "two\nlines ", "{{ 1 }}{% raw %}", "### Response:\n", "ÜBER ✓ 😀", "</s> <s>"]
)
PARTS = st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=3)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", " User", "ärztin"])
CHATS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content}, ROLES, TEXTS | PARTS | st.none()
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(chat=CHATS)
def test_messages_are_asked_as_training_asked_them(name, chat):
    tokenizer = TOKENIZERS[name]
    ask = {"add_generation_prompt": True, "return_dict": False}
    try:
        question, _ = question_and_answer([*chat, {"role": "assistant", "content": "Yes."}])
    except UnusableError:
        with pytest.raises(UnusableError):
            question_of(chat)
        with pytest.raises(Exception, match="no question"):
            tokenizer.apply_chat_template(chat, **ask)
        return
    assert question_of(chat) == question
    asked = Example(question, "", "Yes.", "t")
    wanted = tokenise([asked], tokenizer, 10_000).examples[0]
    assert question_ids(asked, tokenizer) == [*wanted.question]
    assert tokenizer.apply_chat_template(chat, **ask) == [*wanted.question]


def test_a_whole_chat_is_what_training_saw():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello "},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": [{"type": "text", "text": "4 ✓"}]},
    ]
    tokenizer = TOKENIZERS["begins"]
    question, answer = question_and_answer(chat)
    assert question == "Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: 2 + 2?"
    seen = tokenise([Example(question, "", answer, "t")], tokenizer, 1000).examples[0]
    made = tokenizer.apply_chat_template(chat, return_dict=False)
    assert made == [*seen.question, *seen.answer]
    with pytest.raises(Exception, match="set add_generation_prompt"):
        tokenizer.apply_chat_template(chat[:2])


def test_a_tokenizer_whose_start_changes_the_text_is_refused():
    odd = byte_tokenizer()
    odd.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ord("x"))]
    )
    with pytest.raises(ModelError, match="no chat template asks as training did"):
        put_chat_template(odd)
