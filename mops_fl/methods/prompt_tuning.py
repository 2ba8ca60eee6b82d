"""Prompt tuning (Lester et al., 2021, arXiv 2104.08691): vectors before the input embeddings."""

from mops_fl.config import PromptConfig
from mops_fl.methods.fedprompt import FedPrompt


class PromptTuning(FedPrompt):
    """`prompts` [K, d] at the input layer, as `peft` has them; there is no prefix, so no P¹."""

    pretrained = False

    def injection_layer(self, layout: PromptConfig, num_layers: int) -> int:
        """0, whatever `injection-layer` says."""
        return 0
