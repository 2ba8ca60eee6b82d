"""Trained tensors as adapters of `peft`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM

from mops_fl.generation.trained import Trained
from mops_fl.methods import Method
from mops_fl.wire.records import PROMPTS, Tensors

NAME = "default"
"""What `peft` calls an adapter that nobody named."""


def adapted(llama: LlamaForCausalLM, trained: Trained) -> PeftModel:
    """The model with the adapter that a run has trained.

    Args:
        llama: becomes a part of it.
        trained: of LoRA, IA³, or of prompts at the input layer without a gate.
    """
    config, tensors = trained.config, trained.tensors
    if PROMPTS in tensors:
        vectors = len(tensors[PROMPTS])
        made: Any = get_peft_model(
            llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=vectors)
        )
        _fill(made.prompt_encoder[NAME].embedding.weight, tensors[PROMPTS])
        return made
    modules = [name.rpartition(".")[2] for name in trained.method.adapted]
    if config.method == "lora":
        alpha: Any = config.adapters.lora_alpha
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.adapters.lora_rank,
            lora_alpha=alpha,
            target_modules=modules,
        )
        return _filled(get_peft_model(llama, lora), trained.method, tensors, _lora)
    ia3 = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=modules,
        feedforward_modules=[name for name in modules if name == "down_proj"],
    )
    return _filled(get_peft_model(llama, ia3), trained.method, tensors, _ia3)


def _filled(
    model: Any, method: Method, tensors: Tensors, parts: Callable[[Any, str], Mapping[str, Tensor]]
) -> PeftModel:
    for index, layer in enumerate(model.base_model.model.model.layers):
        for name in method.adapted:
            for tensor, place in parts(layer.get_submodule(name), name).items():
                _fill(place, tensors[tensor][index])
    return model


def _lora(module: Any, name: str) -> dict[str, Tensor]:
    a, b = module.lora_A[NAME].weight, module.lora_B[NAME].weight
    return {f"lora.{name}.a": a, f"lora.{name}.b": b}


def _ia3(module: Any, name: str) -> dict[str, Tensor]:
    return {f"ia3.{name}": module.ia3_l[NAME]}


def _fill(place: Tensor, values: Any) -> None:
    """Put values [...] where `peft` has them, with dimensions of 1 more or fewer."""
    with torch.no_grad():
        place.copy_(torch.from_numpy(values).view(place.shape))
