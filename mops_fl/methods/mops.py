"""Mixture of Prompts (Dun et al., AAAI 2025): FedPrompt's vectors in experts, weighed by a gate."""

from dataclasses import replace

import numpy as np

from mops_fl.config import Config
from mops_fl.methods.fedprompt import FedPrompt
from mops_fl.wire.records import GATE, GATE_HIDDEN, GATE_OUTPUT, Shapes
from mops_fl.wire.shapes import ModelSizes


class MoPs(FedPrompt):
    """Expert prompts averaged; the gate with them under ``gate-sync = fedavg``."""

    gated = True

    def shapes(self, config: Config, model: ModelSizes) -> Shapes:
        """`prompts` [K, d], `gate.hidden` [d_g, d] and `gate.output` [E, d_g]."""
        layout = config.prompts
        return {
            **super().shapes(config, model),
            GATE_HIDDEN: (layout.gate_hidden, model.hidden_size),
            GATE_OUTPUT: (layout.experts, layout.gate_hidden),
        }

    def trained(self, config: Config, names: tuple[str, ...]) -> tuple[str, ...]:
        """All, less a gate that stays as pretrained."""
        left = GATE if config.prompts.gate_sync == "frozen" else ()
        return tuple(name for name in names if name not in left)

    def averaged(self, config: Config, names: tuple[str, ...]) -> tuple[str, ...]:
        """The prompts, and the gate where it is synchronised."""
        kept = () if config.prompts.gate_sync == "fedavg" else GATE
        return tuple(name for name in names if name not in kept)

    def matched(self, config: Config, model: ModelSizes, parameters: int) -> Config:
        """By `prompts-per-expert`; experts and gate stay."""
        layout = config.prompts
        of_prompts = layout.num_prompts * model.hidden_size
        gate = self.parameters(config, model) - of_prompts
        count = round((parameters - gate) / (layout.experts * model.hidden_size))
        return replace(config, prompts=replace(layout, prompts_per_expert=max(1, count)))

    def values(self, name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
        """As FedPrompt; W₁ is N(0, 1) and W₂ N(0, 1/d_g).

        The gate's input has norm 1 at most, so that its hidden units are about 1.
        """
        if name not in GATE:
            return super().values(name, shape, draw)
        std = 1.0 if name == GATE_HIDDEN else shape[1] ** -0.5
        return np.float32(std) * draw.standard_normal(shape, np.float32)
