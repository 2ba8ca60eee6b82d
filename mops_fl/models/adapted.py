"""Trained tensors on their frozen LLaMA, as a model of transformers."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from mops_fl.config import AdapterConfig, PromptConfig
from mops_fl.methods import Method
from mops_fl.models.adapters import Adapters
from mops_fl.models.causal_lm import MopsForCausalLM
from mops_fl.wire.records import GATE_HIDDEN, GATE_OUTPUT, PRETRAINED, PROMPTS, Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generates_plainly(llama: LlamaForCausalLM, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Have `generate` do what it is told and nothing that the base model's files add to it, such as
    beams, or a penalty on repetitions.
    """
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    llama.generation_config = GenerationConfig(**ends, pad_token_id=tokenizer.eos_token_id)
    llama.config.use_cache = True


def with_prompts(
    llama: LlamaForCausalLM, layout: PromptConfig, layer: int, tensors: Tensors
) -> MopsForCausalLM:
    """A LLaMA with prompts, and a gate where there is one.

    Args:
        llama: becomes a part of what is returned.
        layout: of prompts and gate.
        layer: L_int.
        tensors: what the method trains, and P¹ where there is one.
    """
    gated = GATE_HIDDEN in tensors
    made = MopsForCausalLM.around(
        llama,
        num_prompts=len(tensors[PROMPTS]),
        num_pretrained=len(tensors.get(PRETRAINED, ())),
        injection_layer=layer,
        injection=layout.injection,
        experts=layout.experts if gated else 0,
        gate_hidden=layout.gate_hidden,
        gate_mode=layout.gate_mode,
        gate_scale=layout.gate_scale,
        gate_top=layout.gate_top if gated else 0,
    )
    own = made.model
    places = {PROMPTS: own.prompts}
    if PRETRAINED in tensors:
        places[PRETRAINED] = own.pretrained
    if own.gate is not None:
        places |= {GATE_HIDDEN: own.gate.hidden, GATE_OUTPUT: own.gate.output}
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(torch.from_numpy(tensors[name]))
    return made


@contextlib.contextmanager
def with_adapters(
    llama: LlamaForCausalLM, method: Method, config: AdapterConfig, tensors: Tensors
) -> Iterator[None]:
    """Have a method's way with the linear modules of a LLaMA.

    Args:
        llama: is itself again afterwards.
        method: says which modules it changes, and how.
        config: of the adapters.
        tensors: what the method trains, stacked over the layers.
    """
    if not method.adapted:
        yield
        return
    one = {name: torch.from_numpy(value)[None].to(llama.device) for name, value in tensors.items()}
    layers = dict(enumerate(llama.model.layers))
    with Adapters(method, config, one, None).within(layers):
        yield
