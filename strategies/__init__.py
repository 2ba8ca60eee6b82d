"""Flower strategies: FedAvg over prompt tensors, and the methods that stand on it.

They import no model code: a method is the names of the tensors that it averages.
"""

from mops_fl.wire.replies import error_text
from mops_fl.wire.rounds import EvaluateRound, Observer, TrainRound, TrainRow
from strategies.fedprompt import FedPrompt
from strategies.mops import MoPs
from strategies.prompt_fedavg import PromptFedAvg
from strategies.sampling import sample_partitions

STRATEGIES: dict[str, type[PromptFedAvg]] = {"mops": MoPs, "fedprompt": FedPrompt}
"""The values of `method`."""

__all__ = [
    "STRATEGIES",
    "EvaluateRound",
    "FedPrompt",
    "MoPs",
    "Observer",
    "PromptFedAvg",
    "TrainRound",
    "TrainRow",
    "error_text",
    "sample_partitions",
]
