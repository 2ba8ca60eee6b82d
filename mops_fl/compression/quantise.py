"""Backbones held in int8 (LLM.int8(), Dettmers et al. 2022) or nf4 (QLoRA, Dettmers et al. 2023).

Through bitsandbytes, on CUDA and on the CPU. Only the linear layers of the decoder layers are
quantised; `lm_head`, embeddings and norms keep their type. A zero stays exactly zero in both, so a
pruned model stays pruned.
"""

import logging
import warnings

import torch
from torch import nn
from transformers import LlamaForCausalLM

from mops_fl.compression_spec import QUANTISATIONS
from mops_fl.errors import ConfigError, ModelError

OUTLIER = 6.0
"""Activations of at least this size are multiplied in the activations' own type (LLM.int8())."""

BLOCK = 64
"""Weights of a row that share one scale in nf4."""


def quantise(model: LlamaForCausalLM, kind: str, device: torch.device | str) -> LlamaForCausalLM:
    """Quantise the decoder layers in place and move the model to `device`.

    One matrix at a time goes to `device` and is quantised there, so that the device never holds the
    float model. The result runs forward, and backward with respect to its inputs.

    LLM.int8() turns activations into float16, and picks outlier columns over all rows of a batch:
    an example's result depends a little on the examples beside it.

    Args:
        model: float weights, on the CPU.
        kind: `int8` or `nf4`.
        device: where the model will run.

    Returns:
        The same model.

    Raises:
        ConfigError: `kind` is neither.
        ModelError: a linear layer is not a plain float one, e.g. quantised already, or its width
            is not a multiple of `BLOCK` (nf4).
    """
    if kind not in QUANTISATIONS:
        raise ConfigError(f"quantisation={kind!r}: must be one of {', '.join(QUANTISATIONS)}")
    device = torch.device(device)
    if device.type == "cpu":
        warnings.warn(
            f"{kind} on the CPU saves memory, not time: expect steps several times slower than "
            "with compression=none in bfloat16 or float32",
            stacklevel=2,
        )
    convert = _to_int8 if kind == "int8" else _to_nf4
    for name, module in list(model.model.layers.named_modules(prefix="model.layers")):
        if isinstance(module, nn.Linear):
            _check(name, module, kind)
            model.set_submodule(name, convert(module, device))
    nn.Module.to(model, device)
    return model


def _check(name: str, linear: nn.Linear, kind: str) -> None:
    if type(linear) is not nn.Linear or not linear.weight.is_floating_point():
        raise ModelError(
            f"{name} is a {type(linear).__name__} of {linear.weight.dtype}: only float models can "
            "be quantised"
        )
    # bitsandbytes 0.50 gives wrong values on the CPU where a block goes over the end of a row.
    if kind == "nf4" and linear.in_features % BLOCK:
        raise ModelError(
            f"{name} is {linear.in_features} wide, which is not a multiple of nf4's block size "
            f"{BLOCK}: use int8"
        )


def _to_int8(linear: nn.Linear, device: torch.device) -> nn.Linear:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    # bitsandbytes says at every call that it casts to float16, which is what LLM.int8() does.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    with torch.device("meta"):
        new = Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=OUTLIER,
        )
    # Int8Params quantises when it leaves the CPU's float memory, be it for the CPU.
    weight = Int8Params(linear.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
    return _filled(new, weight, linear, device)


def _to_nf4(linear: nn.Linear, device: torch.device) -> nn.Linear:
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        new = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=linear.weight.dtype,
            compress_statistics=False,
            quant_type="nf4",
        )
    # On processors with AVX-512 BF16 the first pass without gradient would repack the weights for a
    # kernel that has no backward pass, and later gradients would be lost.
    new.support_avx512bf16_for_cpu = False
    weight = Params4bit(
        linear.weight.detach().cpu(),
        requires_grad=False,
        compress_statistics=False,
        quant_type="nf4",
        module=new,
    )
    return _filled(new, weight, linear, device)


def _filled(
    new: nn.Linear, weight: nn.Parameter, old: nn.Linear, device: torch.device
) -> nn.Linear:
    """`new` with the weight, quantised by its move to `device`, and the bias of `old`."""
    new.weight = weight.to(device=device)  # type: ignore[misc, assignment]
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.detach().to(device), requires_grad=False)
    return new
