"""What a federation is measured against: every client alone, and all data in one place."""

from collections.abc import Mapping

from flwr.app import ArrayRecord

from mops_fl.errors import RunError
from mops_fl.wire.records import Tensors
from mops_fl.wire.replies import Trained
from strategies.prompt_fedavg import PromptFedAvg


class Local(PromptFedAvg):
    """Every client trains in every round, from what it has itself trained; nothing is averaged.

    So each takes as many steps as a federation's tensors take one after the other. The server
    keeps the tensors of all clients in one record, under ``<partition>/<name>``.
    """

    def initial(self, tensors: Tensors) -> Tensors:
        """The same start for every client."""
        return {
            f"{partition}/{name}": value
            for partition in self.roster.clients
            for name, value in tensors.items()
        }

    def active(self, current: int) -> list[int]:
        """All clients that train at all."""
        return self.trainees

    def arrays_of(self, partition: int, arrays: ArrayRecord) -> ArrayRecord:
        """The client's own.

        Raises:
            RunError: the run began without this client.
        """
        if any(f"{partition}/{name}" not in arrays for name in self.averaged):
            raise RunError(
                f"client {partition} was not there when the run began, and training=local has no "
                "tensors of it: begin a new run, or resume with the clients that it began with"
            )
        return ArrayRecord({name: arrays[f"{partition}/{name}"] for name in self.averaged})

    def combined(
        self, server_round: int, arrays: ArrayRecord, valid: Mapping[int, Trained]
    ) -> Tensors:
        """Each client's own, trained where its reply was valid."""
        kept = {name: array.numpy() for name, array in arrays.items()}
        for partition, reply in valid.items():
            kept |= {f"{partition}/{name}": value for name, value in reply.tensors.items()}
        return kept


class Centralised(PromptFedAvg):
    """One worker trains on the training rows of all clients, `local-steps` steps a round."""

    def active(self, current: int) -> list[int]:
        """Whoever serves the first client."""
        return [min(self.trainees)]

    def examples(self, partition: int) -> int:
        """Training rows of all."""
        return sum(self.roster.clients[p].description.examples for p in self.trainees)
