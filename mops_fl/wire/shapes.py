"""The sizes of a LLaMA, from which the shapes of everything that travels follow."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ModelSizes:
    """What decides the shapes of trainable tensors, without any weight."""

    hidden_size: int
    """d."""
    num_layers: int
    query_size: int
    """Outputs of a layer's query projection: heads × head size."""
    key_value_size: int
    """Outputs of its key and value projections."""
    intermediate_size: int
    """Width inside its MLP."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelSizes":
        """Those of a model's config.json, with transformers' defaults for a LLaMA."""
        hidden, heads = config["hidden_size"], config.get("num_attention_heads", 32)
        size = config.get("head_dim") or hidden // heads
        return cls(
            hidden_size=hidden,
            num_layers=config["num_hidden_layers"],
            query_size=heads * size,
            key_value_size=(config.get("num_key_value_heads") or heads) * size,
            intermediate_size=config.get("intermediate_size", 11008),
        )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the sizes, as they travel."""
        return tuple(item.name.replace("_", "-") for item in fields(cls))

    def named(self) -> dict[str, int]:
        """The sizes by these names."""
        return dict(zip(self.names(), astuple(self), strict=True))

    def linear(self, module: str) -> tuple[int, int]:
        """Inputs and outputs of a layer's linear module, such as ``self_attn.q_proj``."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (hidden, self.query_size),
            "self_attn.k_proj": (hidden, self.key_value_size),
            "self_attn.v_proj": (hidden, self.key_value_size),
            "self_attn.o_proj": (self.query_size, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }[module]
