"""The one way a LLaMA is loaded, and the one way one is written."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from mops_fl.base.checkpoint import tensors_fault
from mops_fl.base.source import check_llama
from mops_fl.errors import ModelError, RunError


def load_llama(
    folder: Path, dtype: str = "auto", *, gguf_file: str | None = None, model: str = ""
) -> LlamaForCausalLM:
    """A LLaMA on the CPU with every weight from its files, and no other weight in them.

    Args:
        folder: of the model.
        dtype: the name of torch's type; as the weights are stored by default.
        gguf_file: name of a file in `folder` that holds the model.
        model: what its user calls it, for messages; the folder by default.

    Raises:
        ModelError: it cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    logging.disable_progress_bar()
    named = f"model={model or str(folder)!r}"
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file, local_files_only=True)
        check_llama(model or str(folder), config.model_type)
        loaded: Any = LlamaForCausalLM.from_pretrained(
            folder,
            config=_usable(config),
            gguf_file=gguf_file,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except ModelError:
        raise
    except Exception as error:  # readers of damaged files raise whatever comes
        reason = str(error).strip() or repr(error)
        raise ModelError(
            f"{named} cannot be read ({reason}): if its files are damaged, download them anew"
        ) from error
    llama, report = loaded
    other = [
        f"{name} ({list(stored)} for {list(wanted)})"
        for name, stored, wanted in report["mismatched_keys"]
    ]
    if fault := tensors_fault(report["missing_keys"], report["unexpected_keys"], other):
        raise ModelError(f"{named} {fault}")
    return llama


def _usable(config: LlamaConfig) -> LlamaConfig:
    """Without a padding token that the embedding does not have: nothing is padded here."""
    if not 0 <= (config.pad_token_id or 0) < config.vocab_size:
        config.pad_token_id = None
    return config


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around the writing of weights: a disk that fills up is said as such.

    Raises:
        RunError: they could not be written.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"cannot write the weights to {folder}: {error}: free some disk, or set MOPS_FL_CACHE "
            "(with `mops-fl compress`, --out) to a folder that has room"
        ) from error


def size_in_memory(model: LlamaForCausalLM) -> int:
    """Bytes of all weights, a tied one once."""
    return sum(cast(int, parameter.nbytes) for parameter in model.parameters())
