"""LoRA (Hu et al., 2021, arXiv 2106.09685): low-rank products beside frozen linear modules."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mops_fl.config import AdapterConfig, Config
from mops_fl.methods.method import LayerTensors, Method
from mops_fl.wire.records import Shapes
from mops_fl.wire.shapes import ModelSizes

if TYPE_CHECKING:
    from torch import Tensor


class LoRA(Method):
    """`lora.<module>.a` [L, r, in] and `.b` [L, out, r] beside the queries' and values' modules.

    As in `peft`: A is uniform in ±1/√in, B is zero, their product is scaled by alpha / r, and
    computed in float32.
    """

    adapted = ("self_attn.q_proj", "self_attn.v_proj")

    def shapes(self, config: Config, model: ModelSizes) -> Shapes:
        """Stacked over the layers."""
        layers, rank = model.num_layers, config.adapters.lora_rank
        shapes = {}
        for module in self.adapted:
            inputs, outputs = model.linear(module)
            shapes[f"lora.{module}.a"] = (layers, rank, inputs)
            shapes[f"lora.{module}.b"] = (layers, outputs, rank)
        return shapes

    def values(self, name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
        """A uniform, B zero."""
        if name.endswith(".b"):
            return super().values(name, shape, draw)
        bound = shape[-1] ** -0.5
        return draw.uniform(-bound, bound, shape).astype(np.float32)

    def matched(self, config: Config, model: ModelSizes, parameters: int) -> Config:
        """By `lora-rank`; `lora-alpha` grows with it, so that the scale stays."""
        adapters = config.adapters
        of_one = self.parameters(config, model) // adapters.lora_rank
        rank = max(1, round(parameters / of_one))
        alpha = adapters.lora_alpha * rank / adapters.lora_rank
        return replace(config, adapters=AdapterConfig(lora_rank=rank, lora_alpha=alpha))

    def after(
        self, module: str, inputs: "Tensor", outputs: "Tensor", tensors: LayerTensors
    ) -> "Tensor":
        """``y + (alpha / r) B A x``."""
        own = tensors.low_rank(inputs.float(), f"lora.{module}.a", f"lora.{module}.b")
        scale = tensors.config.lora_alpha / tensors.config.lora_rank
        return (outputs + scale * own).to(outputs.dtype)
