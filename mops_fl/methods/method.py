"""What a method is: trainable tensors, where they act, and which of them are averaged."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mops_fl.config import AdapterConfig, Config, PromptConfig
from mops_fl.errors import ConfigError
from mops_fl.seeding import numpy_generator
from mops_fl.wire.records import PRETRAINED, PROMPTS, Shapes, Tensors
from mops_fl.wire.shapes import ModelSizes

if TYPE_CHECKING:
    from torch import Tensor

INIT_STD = 0.02
"""Standard deviation of randomly initialised prompt vectors."""


class Method:
    """Trains nothing, which is the frozen model itself; methods say what is other with them.

    A tensor named `prompts` [K, d] is K vectors before the tokens at L_int, and the two of a gate
    weigh their experts, whatever the method; everything else acts through `before` and `after`.
    """

    pretrained: ClassVar[bool] = False
    """Whether tokens pass a pretrained prompt P¹ below L_int."""
    gated: ClassVar[bool] = False
    """Whether there is a gate over experts."""
    adapted: ClassVar[tuple[str, ...]] = ()
    """Linear modules of every layer from L_int on whose inputs or outputs it changes, such as
    ``self_attn.q_proj``."""

    def injection_layer(self, layout: PromptConfig, num_layers: int) -> int:
        """L_int: below it nothing depends on what is trained.

        Raises:
            ConfigError: the backbone has no such layer.
        """
        return 0

    def shapes(self, config: Config, model: ModelSizes) -> Shapes:
        """Of the trainable tensors, by name."""
        return {}

    def trained(self, config: Config, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the trainable tensors' names that local steps change."""
        return names

    def averaged(self, config: Config, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the trainable tensors' names that travel both ways and are averaged."""
        return names

    def values(self, name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
        """Initial values of a tensor, float32; zeros where the method does not say otherwise."""
        return np.zeros(shape, np.float32)

    def before(self, module: str, inputs: "Tensor", tensors: "LayerTensors") -> "Tensor":
        """What a module of `adapted` gets in place of its inputs [..., N, in]."""
        return inputs

    def after(
        self, module: str, inputs: "Tensor", outputs: "Tensor", tensors: "LayerTensors"
    ) -> "Tensor":
        """What stands in place of the outputs [..., N, out] of a module of `adapted`."""
        return outputs

    def initial(self, config: Config, model: ModelSizes, seed: int) -> Tensors:
        """Seeded initial values of all trainable tensors, from sizes alone."""
        return {
            name: self.values(name, shape, numpy_generator(seed, "initial", name))
            for name, shape in self.shapes(config, model).items()
        }

    def all_shapes(self, config: Config, model: ModelSizes) -> Shapes:
        """`shapes`, and that of P¹ where there is one: as many vectors as there are prompts."""
        shapes = self.shapes(config, model)
        if not self.pretrains(config.prompts):
            return shapes
        return {**shapes, PRETRAINED: shapes[PROMPTS]}

    def pretrains(self, layout: PromptConfig) -> bool:
        """Whether there is a P¹."""
        steps = layout.pretrain_prompt_steps
        return self.pretrained and steps > 0 and layout.pretrain_data != "none"

    def pretrains_gate(self, layout: PromptConfig) -> bool:
        """Whether a gate is trained before round 1."""
        return self.gated and layout.pretrain_gate_steps > 0 and layout.pretrain_data != "none"

    def needs_rows(self, layout: PromptConfig) -> bool:
        """Whether something is trained before round 1."""
        return self.pretrains(layout) or self.pretrains_gate(layout)

    def starts_from_model(self, layout: PromptConfig) -> bool:
        """Whether the rounds begin with tensors that it takes the frozen model to make."""
        return False

    def travelling(self, config: Config, model: ModelSizes) -> tuple[str, ...]:
        """`averaged`, of the tensors for a model."""
        return self.averaged(config, tuple(self.shapes(config, model)))

    def parameters(self, config: Config, model: ModelSizes) -> int:
        """How many numbers a client trains."""
        shapes = self.shapes(config, model)
        return sum(math.prod(shapes[name]) for name in self.trained(config, tuple(shapes)))

    def matched(self, config: Config, model: ModelSizes, parameters: int) -> Config:
        """The configuration whose `parameters` are nearest to a number.

        Raises:
            ConfigError: the method has no size that could be chosen.
        """
        raise ConfigError(
            f"method={config.method} always trains {self.parameters(config, model):,} numbers: "
            "match the other methods to it instead"
        )


@dataclass(frozen=True)
class Whose:
    """The client of each of N positions, of C clients."""

    index: "Tensor"
    """[N]."""
    own: "Tensor"
    """[N, C], whether a position is a client's."""


class LayerTensors:
    """The trainable tensors of one layer, each client's rows to its own.

    Tensors of `adapted` modules are stacked over layers: [C, L, ...] for C clients and L layers.
    """

    def __init__(
        self,
        tensors: "Mapping[str, Tensor]",
        layer: int,
        whose: Callable[[], Whose | None],
        config: AdapterConfig,
    ) -> None:
        """Nothing is computed before it is asked for.

        Args:
            tensors: of all clients and layers.
            layer: whose.
            whose: the positions are now; None where there is one client.
            config: of the adapters.
        """
        self._tensors, self._layer, self._whose = tensors, layer, whose
        self.config = config

    def rows(self, name: str) -> "Tensor":
        """A vector a client [C, L, n] as the vector of each position: [N, n], or [n] for one."""
        own = self._tensors[name][:, self._layer]
        whose = self._whose()
        return own[0] if whose is None else own[whose.index]

    def low_rank(self, inputs: "Tensor", down: str, up: str) -> "Tensor":
        """Inputs [..., N, n] through the matrices [r, n] and then [m, r] of their own client.

        With several clients all of them are multiplied at once, and what is not a position's own
        is zeroed in between: narrow as they are, that costs less than to part the positions.

        Args:
            inputs: in the matrices' type.
            down: name of [C, L, r, n].
            up: name of [C, L, m, r].

        Returns:
            [..., N, m].
        """
        first, second = (self._tensors[name][:, self._layer] for name in (down, up))
        whose = self._whose()
        if whose is None:
            return inputs @ first[0].T @ second[0].T
        # [..., N, C, r]
        low = (inputs @ first.flatten(0, 1).T).unflatten(-1, first.shape[:2])
        # filled, not multiplied by 0: what is not finite stays with its own client
        low = low.masked_fill(~whose.own[..., None], 0)
        return low.flatten(-2) @ second.transpose(1, 2).flatten(0, 1)


def prompt_layer(layout: PromptConfig, num_layers: int) -> int:
    """`injection-layer` as an index from 0; a third of the depth where -1 asks for it.

    Raises:
        ConfigError: the backbone has no such layer.
    """
    layer = num_layers // 3 if layout.injection_layer == -1 else layout.injection_layer
    if layer >= num_layers:
        raise ConfigError(
            f"injection-layer={layer}: the model has {num_layers} layers, so it must be at most "
            f"{num_layers - 1}"
        )
    return layer
