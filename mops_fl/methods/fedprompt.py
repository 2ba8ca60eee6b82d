"""FedPrompt (Zhao et al., 2023, arXiv 2208.12268): prompt vectors at L_int, without a gate."""

from dataclasses import replace

import numpy as np

from mops_fl.config import Config, PromptConfig
from mops_fl.methods.method import INIT_STD, Method, prompt_layer
from mops_fl.wire.records import PROMPTS, Shapes
from mops_fl.wire.shapes import ModelSizes


class FedPrompt(Method):
    """The baseline: `prompts` [K, d], all of them averaged."""

    pretrained = True

    def injection_layer(self, layout: PromptConfig, num_layers: int) -> int:
        """`injection-layer`."""
        return prompt_layer(layout, num_layers)

    def shapes(self, config: Config, model: ModelSizes) -> Shapes:
        """`prompts` [K, d]."""
        return {PROMPTS: (config.prompts.num_prompts, model.hidden_size)}

    def starts_from_model(self, layout: PromptConfig) -> bool:
        """To pretrain, and for vectors of vocabulary tokens."""
        return self.needs_rows(layout) or layout.prompt_init == "vocab"

    def matched(self, config: Config, model: ModelSizes, parameters: int) -> Config:
        """By the number of vectors, in one group."""
        count = max(1, round(parameters / model.hidden_size))
        layout = replace(config.prompts, experts=1, prompts_per_expert=count, gate_top=0)
        return replace(config, prompts=layout)

    def values(self, name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
        """N(0, 0.02²)."""
        return np.float32(INIT_STD) * draw.standard_normal(shape, np.float32)
