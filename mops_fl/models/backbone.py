"""The frozen LLaMA: loaded once a process, run layer by layer."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from mops_fl.base.device import resolve_device
from mops_fl.base.dtype import resolve_dtype
from mops_fl.base.load import load_llama
from mops_fl.config import BackboneConfig
from mops_fl.models.attention import NAME
from mops_fl.models.memory import Memory
from mops_fl.models.weights import ensure_weights


class Backbone:
    """A frozen `LlamaForCausalLM` of transformers, run by ranges of its own layers."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        model.requires_grad_(False).eval()
        model.set_attn_implementation(NAME)
        self.model = model
        self.hidden_size: int = model.config.hidden_size
        self.num_layers: int = model.config.num_hidden_layers
        self.dtype = model.model.embed_tokens.weight.dtype
        self.device = model.model.embed_tokens.weight.device
        self.memory = Memory(model.config, self.dtype, self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids to states: one more dimension, d."""
        return self.model.model.embed_tokens(ids)

    def run(
        self,
        states: Tensor,
        layers: range,
        positions: Tensor | None = None,
        past: Any = None,
        **attention: Any,
    ) -> Tensor:
        """Run states [B, T, d] through some of the layers.

        Args:
            states: input of the first of these layers.
            layers: consecutive layer indices.
            positions: RoPE position of each state, [B, T] or [1, T]; from 0 by default.
            past: see `mops_fl.models.attention.KeyValues`.
            **attention: passed on to the attention function.

        Returns:
            The output of the last of these layers, [B, T, d]; for T = 0 nothing is run.
        """
        if not states.shape[1]:
            return states
        if positions is None:
            positions = torch.arange(states.shape[1], device=states.device)[None]
        rotary = self.model.model.rotary_emb(states, positions)
        for index in layers:
            states = self.model.model.layers[index](
                states, position_embeddings=rotary, past_key_values=past, **attention
            )
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Output of the last layer [N, d] to logits over the vocabulary [N, V], float32."""
        return self.model.lm_head(self.model.model.norm(states)).float()


@lru_cache(maxsize=1)
def load_backbone(config: BackboneConfig) -> Backbone:
    """The backbone of a configuration; kept for the life of the process.

    Raises:
        ModelError: as `load_frozen`.
        ConfigError: as `load_frozen`.
    """
    return Backbone(load_frozen(config))


def load_frozen(config: BackboneConfig) -> LlamaForCausalLM:
    """The LLaMA of a configuration, compressed, on its device.

    On the CPU the weights are memory-mapped, so that processes share their pages.

    Raises:
        ModelError: the model does not exist, is not a LLaMA, or cannot be read.
        ConfigError: the device does not exist.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, config.device)
    model = load_llama(ensure_weights(config), dtype)
    if config.spec.quantisation:
        from mops_fl.compression.quantise import quantise

        quantise(model, config.spec.quantisation, device)
    nn.Module.to(model, device)
    if config.sparse_kernels:
        from mops_fl.compression.sparse24 import use_sparse_cores

        use_sparse_cores(model)
    return model.requires_grad_(False).eval()
