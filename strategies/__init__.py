"""Flower strategies: FedAvg over prompt tensors, and the methods that stand on it.

They import no model code: a method is the names of the tensors that it averages.
"""

from strategies.admission import Client, admit
from strategies.fedprompt import FedPrompt
from strategies.mops import MoPs
from strategies.prompt_fedavg import PromptFedAvg, require
from strategies.sampling import sample_partitions

STRATEGIES: dict[str, type[PromptFedAvg]] = {"mops": MoPs, "fedprompt": FedPrompt}
"""The values of `method`."""

__all__ = [
    "STRATEGIES",
    "Client",
    "FedPrompt",
    "MoPs",
    "PromptFedAvg",
    "admit",
    "require",
    "sample_partitions",
]
