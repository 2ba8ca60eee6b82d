"""MoPs (Dun et al., AAAI 2025): FedAvg over expert prompts, and over the gate if so configured."""

from mops_fl.config import Config
from mops_fl.wire.records import GATE, PROMPTS
from strategies.prompt_fedavg import PromptFedAvg


class MoPs(PromptFedAvg):
    """Expert prompts averaged; the gate with them under ``gate-sync = fedavg``."""

    gated = True

    @classmethod
    def averaged(cls, config: Config) -> tuple[str, ...]:
        """The prompts, and the gate where it is synchronised."""
        return (PROMPTS, *GATE) if config.prompts.gate_sync == "fedavg" else (PROMPTS,)
