"""2:4 weights on a GPU's sparse tensor cores, through `torch.sparse.to_sparse_semi_structured`.

The forward product uses the compressed weight. The product with the transposed weight, which the
gradient of the input needs, cannot: the transpose of a 2:4 matrix is not 2:4, and torch's tensor
has no backward pass when it is made from a given mask. It uses the dense weight, which is kept
where a gradient is wanted, so that such a layer takes 1.56 times its dense memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from mops_fl.compression.pattern import is_prunable, pattern_fault
from mops_fl.compression_spec import parse
from mops_fl.errors import ConfigError, ModelError

_PATTERN = parse("2:4")


class SparseLinear(nn.Module):
    """A frozen linear layer whose forward pass runs on sparse tensor cores."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.packed = torch.sparse.to_sparse_semi_structured(weight)

    def forward(self, states: Tensor) -> Tensor:
        """[..., in features] to [..., out features]."""
        return _SparseProduct.apply(states, self.packed, self.weight, self.bias)


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, packed: Tensor, weight: Tensor, bias: Any) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(states, packed, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight, None, None, None


def use_sparse_cores(model: LlamaForCausalLM) -> None:
    """Run every pruned linear layer of a 2:4 model on sparse tensor cores, in place.

    Args:
        model: pruned 2:4, in float16 or bfloat16, on a CUDA device of compute capability 8.0 or
            more.

    Raises:
        ConfigError: the model is not on such a device, or of another type.
        ModelError: a matrix is not 2:4, or of a shape that the sparse cores do not take.
    """
    check_device(model.device, model.dtype)
    pruned = [
        name.removesuffix(".weight") for name, _ in model.named_parameters() if is_prunable(name)
    ]
    for name in pruned:
        if fault := pattern_fault(model.get_submodule(name).weight, _PATTERN):  # type: ignore[arg-type]
            raise ModelError(f"{name}: {fault}: sparse tensor cores take 2:4 only")
    for name in pruned:
        try:
            model.set_submodule(name, SparseLinear(model.get_submodule(name)))  # type: ignore[arg-type]
        except RuntimeError as error:
            raise ModelError(f"{name}: sparse tensor cores do not take it: {error}") from error


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Whether sparse tensor cores can take a product.

    Raises:
        ConfigError: the device or type has none.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"device={device}: sparse tensor cores need CUDA with compute capability 8.0 or more: "
            "run the 2:4 model densely"
        )
    if dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(f"dtype={dtype}: sparse tensor cores here need float16 or bfloat16")
