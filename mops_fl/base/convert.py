"""Writing a base model as safetensors in one type, with its tokenizer."""

from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging

from mops_fl.activity import doing
from mops_fl.base.source import Source, check_llama
from mops_fl.errors import ModelError


def convert(model: str, source: Source, dtype: str, folder: Path) -> None:
    """Write the model of `source` to `folder`: config.json, *.safetensors and the tokenizer.

    Raises:
        ModelError: the model is not a LLaMA, or its weights or tokenizer cannot be read.
    """
    with doing(f"converting {model} to {dtype}"):
        _convert(model, source, dtype, folder)


def _convert(model: str, source: Source, dtype: str, folder: Path) -> None:
    logging.disable_progress_bar()
    try:
        check_llama(model, AutoConfig.from_pretrained(**source.arguments).model_type)
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        loaded = AutoModelForCausalLM.from_pretrained(
            **source.arguments, dtype=getattr(torch, dtype)
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ModelError(f"model={model!r} cannot be read from {source.path}: {error}") from error
    plain = _without_origin(cast(LlamaForCausalLM, loaded))
    if source.gguf:
        # transformers 5.17 gives a GGUF tokenizer its begin token as end token too.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(cast(int, plain.config.eos_token_id))
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _without_origin(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model without the marks of a quantised origin, which forbid saving it."""
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain
