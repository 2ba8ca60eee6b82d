"""SparseGPT (Frantar and Alistarh, ICML 2023) through llmcompressor, with its silences made errors.

llmcompressor 0.14 logs a warning and goes on with an identity when a Hessian cannot be inverted,
ignores `sparsity` when a pattern is given, and checks no width. Its ``N:M`` prunes N of every M, as
ours does.
"""

import math
import os
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from mops_fl.compression.pattern import is_prunable, pattern_fault, value_fault
from mops_fl.compression_spec import Compression
from mops_fl.errors import ConfigError, DataError, ModelError

MAX_BLOCK_SIZE = 128
"""Columns pruned before the rest of the matrix is updated, at most; 128 in the paper."""


def prune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    compression: Compression,
    *,
    device: torch.device | str = "cpu",
    block_size: int | None = None,
    progress: Callable[[str], None] = lambda _layer: None,
) -> None:
    """Prune the linear layers of every decoder layer in place; `lm_head` and embeddings stay.

    Layer by layer: the model stays where it is (CPU memory, in its own type) and one decoder layer
    at a time goes to `device`. With it live its seven Hessians (float32, width² each), two more
    copies of the largest while it is inverted, and one row's activations; the other rows'
    activations wait in CPU memory. At LLaMA-7B's widths in bfloat16 that is 2 GB over the weights,
    libraries included (measured with two layers on the CPU: 2.8 GB in all, 0.8 GB of them
    weights); most of it is for `down_proj`, whose Hessian takes 11008² × 4 bytes = 0.5 GB.

    Args:
        model: float weights, on the CPU, loaded from a local folder.
        tokenizer: the model's; only llmcompressor's check of its arguments looks at it.
        rows: token ids of the calibration examples, each of any length from 1.
        compression: its pruning is done, its quantisation is not.
        device: where the decoder layers are pruned.
        block_size: columns pruned at once; by default the largest number up to `MAX_BLOCK_SIZE`
            that divides every width and is a multiple of M.
        progress: called with the name of every linear layer that has been pruned.

    Raises:
        ConfigError: there is nothing to prune, or the block size or M does not divide a width.
        DataError: a row is empty or holds a token that the model does not have.
        ModelError: the weights are not floats, a Hessian is not positive definite, or the result is
            not as asked for; after the last two the model is half pruned and of no use.
    """
    if not compression.pruning:
        raise ConfigError(f"compression={compression}: there is nothing to prune")
    _check_rows(rows, model.config.vocab_size)
    block = _block_size(_widths(model), compression, block_size)
    # The library reads this when it is imported, and would write to standard output below it.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    from mops_fl.compression._llmcompressor import run_sparsegpt

    run_sparsegpt(model, tokenizer, rows, compression, block, torch.device(device), progress)
    for name, parameter in model.named_parameters():
        if fault := value_fault(parameter):
            raise ModelError(
                f"{name}: {fault} after pruning: use dtype=float32 or a sound base model"
            )
        if is_prunable(name) and (fault := pattern_fault(parameter, compression)):
            raise ModelError(f"{name}: {fault}: give a dense base model")


def _check_rows(rows: Sequence[Sequence[int]], vocab_size: int) -> None:
    if not rows:
        raise DataError("calibration: no rows: SparseGPT needs at least one")
    for index, row in enumerate(rows):
        if not row:
            raise DataError(f"calibration row {index}: holds no tokens")
        if not 0 <= min(row) <= max(row) < vocab_size:
            raise DataError(
                f"calibration row {index}: holds tokens from {min(row)} to {max(row)}, but the "
                f"model has {vocab_size}: tokenise it with the model's own tokenizer"
            )


def _widths(model: LlamaForCausalLM) -> dict[str, int]:
    """The width (in features) of every matrix to be pruned."""
    matrices = {name: p for name, p in model.named_parameters() if is_prunable(name)}
    for name, parameter in matrices.items():
        if not parameter.is_floating_point():
            raise ModelError(
                f"{name}: is held as {parameter.dtype}: prune a model of float weights"
            )
    if len(matrices) != 7 * model.config.num_hidden_layers:
        raise ModelError(
            f"the model has {len(matrices)} prunable matrices instead of seven in each of its "
            f"{model.config.num_hidden_layers} layers: give a plain LLaMA"
        )
    return {name: parameter.shape[1] for name, parameter in matrices.items()}


def _block_size(widths: dict[str, int], compression: Compression, asked: int | None) -> int:
    group = max(compression.m, 1)
    for name, width in widths.items():
        if width % group:
            raise ConfigError(
                f"compression={compression}: M={group} does not divide the width {width} of "
                f"{name}: choose an M that does"
            )
    common = math.gcd(*widths.values())
    fitting = [size for size in range(group, common + 1, group) if common % size == 0]
    if asked is None:
        return max((size for size in fitting if size <= MAX_BLOCK_SIZE), default=fitting[0])
    if asked not in fitting:
        raise ConfigError(
            f"block size {asked}: must divide every width of the model and be a multiple of "
            f"M={group}: {', '.join(map(str, fitting))}"
        )
    return asked
