"""llmcompressor's SparseGPT modifier and pipeline, failing where the library only warns.

Importing llmcompressor takes seconds and replaces loguru's handlers: import this module only where
something is about to be pruned.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence

import torch
from compressed_tensors.offload import remove_dispatch
from compressed_tensors.utils import patch_attr
from llmcompressor import oneshot
from llmcompressor.core import create_session
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.pipelines.sequential import pipeline as sequential_pipeline
from loguru import logger
from pydantic import PrivateAttr
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from mops_fl.compression_spec import Compression
from mops_fl.errors import ModelError


def run_sparsegpt(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    compression: Compression,
    block_size: int,
    device: torch.device,
    progress: Callable[[str], None],
) -> None:
    """Prune the decoder layers in place; `mops_fl.compression.sparsegpt.prune` says how.

    Raises:
        ModelError: a Hessian is not positive definite.
    """
    # Decoder layers as targets: with "Linear" the library's names end in a dot, and neither its
    # `lm_head` warning nor a plain "lm_head" in `ignore` matches "lm_head.".
    modifier = _CheckedSparseGPT(
        sparsity=compression.sparsity,
        mask_structure=f"{compression.n}:{compression.m}",
        block_size=block_size,
        targets=[type(model.model.layers[0]).__name__],
    )
    modifier._progress = progress
    batches = [
        {"input_ids": torch.tensor(row), "attention_mask": torch.ones(len(row), dtype=torch.long)}
        for row in rows
    ]
    try:
        with _quiet(), create_session(), _on(device):
            oneshot(
                model=model,
                tokenizer=tokenizer,
                dataset=DataLoader(batches, batch_size=1),  # type: ignore[arg-type]
                recipe=modifier,
                pipeline="sequential",
            )
    finally:
        modifier.remove_hooks()
        remove_dispatch(model)


class _CheckedSparseGPT(SparseGPTModifier):
    """The library's modifier, one linear layer at a time, so that what happens has a name."""

    _progress: Callable[[str], None] | None = PrivateAttr(default=None)

    def compress_modules(self) -> None:
        for module, samples in list(self._num_samples.items()):
            self._num_samples = {module: samples}
            name = self._module_names[module]
            with _warnings_as_errors(name):
                super().compress_modules()
            if self._progress:
                self._progress(name)


@contextlib.contextmanager
def _warnings_as_errors(layer: str) -> Iterator[None]:
    """Make any warning of llmcompressor's pruning code an error.

    Its only one says that a Hessian has no Cholesky factor; the library then takes the identity.
    """

    def refuse(_message: object) -> None:
        raise ModelError(
            f"{layer}: the Hessian of its inputs is not positive definite, so SparseGPT cannot "
            "prune it: give more or other calibration rows, or use dtype=float32"
        )

    # Undoes LLM_COMPRESSOR_LOG_DISABLED, which would hide the warning from the handler.
    logger.enable("llmcompressor")
    handler = logger.add(
        refuse,
        level="WARNING",
        filter=lambda record: (
            record["level"].name == "WARNING" and str(record["name"]).endswith(".sgpt_sparsify")
        ),
        catch=False,
    )
    try:
        yield
    finally:
        logger.remove(handler)


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Make llmcompressor's sequential pipeline use this device; it has no argument for it."""
    with patch_attr(sequential_pipeline, "get_main_device", lambda: device):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide llmcompressor's progress bars, two for every decoder layer."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
