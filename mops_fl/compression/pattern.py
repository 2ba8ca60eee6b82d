"""The zeros of a pruned matrix: which matrices are pruned, and whether the mask is as stated."""

import re

import torch

from mops_fl.compression_spec import Compression

TOLERANCE = 0.01
"""How far the achieved sparsity of an unstructured layer may lie from its target, as a fraction.

SparseGPT prunes ⌊size × sparsity⌋ + 1 weights of every block of columns, hence up to one weight a
block more than asked for; ties may add some.
"""

_PRUNABLE = re.compile(
    r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
)


def is_prunable(tensor_name: str) -> bool:
    """Whether SparseGPT prunes this tensor: the seven matrices of each decoder layer, no other."""
    return _PRUNABLE.fullmatch(tensor_name) is not None


def zero_fraction(weight: torch.Tensor) -> float:
    """Achieved sparsity, from 0 to 1."""
    return 1.0 - torch.count_nonzero(weight).item() / weight.numel()


def value_fault(tensor: torch.Tensor) -> str:
    """What is wrong with a tensor's values, for a message; empty when they are all finite."""
    # Extremes carry NaN and infinity, and are found five times faster than by torch.isfinite.
    low, high = tensor.aminmax()
    return "" if torch.isfinite(low) and torch.isfinite(high) else "holds NaN or infinite values"


def pattern_fault(weight: torch.Tensor, compression: Compression) -> str:
    """What is wrong with the zeros of a pruned matrix, for a message; empty when nothing is.

    N:M: every group of M consecutive weights of every row has at least N zeros. Unstructured: the
    matrix's sparsity is the target to within `TOLERANCE`.

    Args:
        weight: [out features, in features].
        compression: the pruning that was asked for.
    """
    if not compression.m:
        achieved = zero_fraction(weight)
        if abs(achieved - compression.sparsity) <= TOLERANCE:
            return ""
        return (
            f"{achieved:.2%} of its weights are zero where {compression} asks for "
            f"{compression.sparsity:.2%} (± {TOLERANCE:.0%})"
        )
    if weight.shape[1] % compression.m:
        return f"its width {weight.shape[1]} is not a multiple of M={compression.m}"
    # [rows, columns] -> [groups, M]
    zeros = (weight.reshape(-1, compression.m) == 0).sum(dim=1, dtype=torch.int16)
    broken = int((zeros < compression.n).sum())
    if not broken:
        return ""
    return (
        f"{broken} of its {zeros.numel()} groups of {compression.m} weights have fewer than "
        f"{compression.n} zeros, so it is not {compression.pruning}"
    )
