"""The tokenizer of a base model: what it encodes it must give back."""

from pathlib import Path
from typing import TYPE_CHECKING

from mops_fl.base.identity import once, tokenizer_files
from mops_fl.base.prepare import prepared
from mops_fl.base.source import llama_config
from mops_fl.config import BackboneConfig
from mops_fl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = (
    "### Instruction:\nWhich of these 2 numbers is larger?\n\n### Input:\n17, 305\n\n"
    "### Response:\nThe larger one is 305."
)
"""A text of the template's form."""


def load_tokenizer(config: BackboneConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of a configuration's model.

    Raises:
        ModelError: the model does not exist, or as `read_tokenizer`.
    """
    return read_tokenizer(config.model, prepared(config))


def check_tokenizer(model: str, folder: Path) -> None:
    """Find out, once for the same files, whether `read_tokenizer` takes them.

    Raises:
        ModelError: it does not.
    """

    def usable() -> str:
        read_tokenizer(model, folder)
        return "usable"

    once("tokenizers", [*tokenizer_files(folder), folder / "config.json"], usable)


def read_tokenizer(model: str, folder: Path) -> "PreTrainedTokenizerBase":
    """A folder's tokenizer, as its tokenizer.json says where there is one.

    Raises:
        ModelError: it cannot be read, loses spaces or newlines, has no end-of-sequence token, or
            gives one that the model does not have.
    """
    try:
        tokenizer = _read(folder)
        ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    except Exception as error:  # readers of damaged files raise whatever comes
        raise ModelError(
            f"model={model!r}: the tokenizer in {folder} cannot be read: {error}: save it anew"
        ) from error
    # a SentencePiece tokenizer may begin every text with a space of its own
    if back.removeprefix(" ") != PROBE:
        raise ModelError(
            f"model={model!r}: its tokenizer gives {PROBE[:40]!r}… back as {back[:40]!r}…: save "
            "the tokenizer.json that the model was trained with"
        )
    _check_special(model, tokenizer, llama_config(model, folder).get("vocab_size", 32000))
    return tokenizer


def _read(folder: Path) -> "PreTrainedTokenizerBase":
    """A class of transformers may build its tokenizer anew, which must not change an id."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not file.is_file():
        SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))  # or says what is wrong
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
    try:
        by_class = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if by_class(PROBE, add_special_tokens=False)["input_ids"] == ids:
            return by_class
    except (ValueError, KeyError, ImportError, AttributeError, TypeError):
        pass  # a class that is unknown here: the file alone says everything
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _check_special(model: str, tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model={model!r}: its tokenizer has no end-of-sequence token: name one as eos_token "
            "in tokenizer_config.json"
        )
    for kind in ("eos_token", "bos_token"):
        number = getattr(tokenizer, f"{kind}_id")
        if number is not None and number >= vocab_size:
            raise ModelError(
                f"model={model!r}: its tokenizer's {kind} {getattr(tokenizer, kind)!r} has the id "
                f"{number}, but the model has {vocab_size} tokens: give the tokenizer that the "
                "model was trained with, or resize the model's embedding"
            )
