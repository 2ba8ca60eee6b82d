"""IA³ (Liu et al., 2022, arXiv 2205.05638): learned factors on keys, values and inside the MLP."""

from typing import TYPE_CHECKING

import numpy as np

from mops_fl.config import Config
from mops_fl.methods.method import LayerTensors, Method
from mops_fl.wire.records import Shapes
from mops_fl.wire.shapes import ModelSizes

if TYPE_CHECKING:
    from torch import Tensor

_INNER = "mlp.down_proj"


class IA3(Method):
    """`ia3.<module>` [L, n]: factors of keys, of values, and of what the MLP's last module gets.

    As in `peft`: all ones at first.
    """

    adapted = ("self_attn.k_proj", "self_attn.v_proj", _INNER)

    def shapes(self, config: Config, model: ModelSizes) -> Shapes:
        """Stacked over the layers."""
        sizes = {module: model.linear(module) for module in self.adapted}
        return {
            f"ia3.{module}": (model.num_layers, inputs if module == _INNER else outputs)
            for module, (inputs, outputs) in sizes.items()
        }

    def values(self, name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
        """Ones."""
        return np.ones(shape, np.float32)

    def before(self, module: str, inputs: "Tensor", tensors: LayerTensors) -> "Tensor":
        """The MLP's inner states, scaled."""
        return self._scaled(module, inputs, tensors) if module == _INNER else inputs

    def after(
        self, module: str, inputs: "Tensor", outputs: "Tensor", tensors: LayerTensors
    ) -> "Tensor":
        """Keys or values, scaled."""
        return outputs if module == _INNER else self._scaled(module, outputs, tensors)

    @staticmethod
    def _scaled(module: str, states: "Tensor", tensors: LayerTensors) -> "Tensor":
        return (states * tensors.rows(f"ia3.{module}")).to(states.dtype)
