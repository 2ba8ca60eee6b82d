"""FedPrompt (Zhao et al., 2023, arXiv 2208.12268): FedAvg over prompt vectors, without a gate."""

from strategies.prompt_fedavg import PromptFedAvg


class FedPrompt(PromptFedAvg):
    """The baseline: the prompts, all of them, averaged."""
