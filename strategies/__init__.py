"""Flower strategies: who trains in a round, and what becomes of the tensors that come back.

They import no model code: a method is the names of the tensors that it averages.
"""

from strategies.admission import Client, admit, misfit
from strategies.alone import Centralised, Local
from strategies.prompt_fedavg import PromptFedAvg
from strategies.quorum import minimum, require
from strategies.roster import Roster
from strategies.sampling import sample_partitions

STRATEGIES: dict[str, type[PromptFedAvg]] = {
    "federated": PromptFedAvg,
    "local": Local,
    "centralised": Centralised,
}
"""The values of `training`."""

__all__ = [
    "STRATEGIES",
    "Centralised",
    "Client",
    "Local",
    "PromptFedAvg",
    "Roster",
    "admit",
    "minimum",
    "misfit",
    "require",
    "sample_partitions",
]
