"""Writing a base model as safetensors in one type, with its tokenizer."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from mops_fl.activity import doing
from mops_fl.base.identity import tokenizer_files
from mops_fl.base.load import load_llama, size_in_memory, writing
from mops_fl.base.source import Source
from mops_fl.errors import ModelError
from mops_fl.files import check_disk


def convert(model: str, source: Source, dtype: str, folder: Path) -> None:
    """Write the model of `source` to `folder`: config.json, *.safetensors and the tokenizer.

    Raises:
        ModelError: the model is not a LLaMA, or its weights or tokenizer cannot be read.
        RunError: there is not enough disk.
    """
    with doing(f"converting {model} to {dtype}"), _alone(source) as (place, gguf_file):
        loaded = _without_origin(load_llama(place, dtype, gguf_file=gguf_file, model=model))
        check_disk(folder, size_in_memory(loaded), "the converted model")
        if gguf_file:
            tokenizer = _tokenizer(model, place, gguf_file, loaded.config)
        with writing(folder):
            loaded.save_pretrained(folder)
            if gguf_file:
                tokenizer.save_pretrained(folder)
            else:
                for file in tokenizer_files(place):
                    shutil.copyfile(file, folder / file.name)


@contextlib.contextmanager
def _alone(source: Source) -> Iterator[tuple[Path, str | None]]:
    """Folder, and name of the GGUF file there: whatever lies beside that would be read, too."""
    if not source.gguf:
        yield source.path, None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.gguf").symlink_to(source.path)
        yield folder, "model.gguf"


def _tokenizer(
    model: str, folder: Path, gguf_file: str, config: LlamaConfig
) -> PreTrainedTokenizerBase:
    try:
        # said always: it is written into the tokenizer's files, and with it whether hubs are off
        tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=gguf_file, local_files_only=True
        )
        # transformers 5.17 gives a GGUF tokenizer its begin token as end token too.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(cast(int, config.eos_token_id))
    except Exception as error:  # readers of damaged files raise whatever comes
        raise ModelError(f"model={model!r}: its tokenizer cannot be read: {error}") from error
    return tokenizer


def _without_origin(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model without the marks of a quantised origin, which forbid saving it."""
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain
