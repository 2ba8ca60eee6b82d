"""Whether a product with a 2:4 weight is faster on a GPU's sparse tensor cores."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.benchmark import Timer

from mops_fl.compression.sparse24 import SparseLinear, check_device


@dataclass(frozen=True)
class Timing:
    """One forward product, dense and sparse, in microseconds."""

    out_features: int
    in_features: int
    tokens: int
    dense: float
    sparse: float

    @property
    def speedup(self) -> float:
        """More than 1 where sparse is faster."""
        return self.dense / self.sparse


def time_product(
    out_features: int, in_features: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> Timing:
    """Time one linear layer with random 2:4 weights, median of about a second.

    Raises:
        ConfigError: the device or type has no sparse tensor cores.
    """
    check_device(device, dtype)
    linear = nn.Linear(in_features, out_features, bias=False, device=device, dtype=dtype)
    linear.requires_grad_(False).weight[:, 0::4] = 0
    linear.weight[:, 1::4] = 0
    states = torch.randn(tokens, in_features, device=device, dtype=dtype)
    layers = {"dense": linear, "sparse": SparseLinear(linear)}
    seconds = {
        name: Timer("layer(states)", globals={"layer": layer, "states": states})
        .blocked_autorange(min_run_time=0.5)
        .median
        for name, layer in layers.items()
    }
    return Timing(
        out_features, in_features, tokens, seconds["dense"] * 1e6, seconds["sparse"] * 1e6
    )
