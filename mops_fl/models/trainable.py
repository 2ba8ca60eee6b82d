"""The trainable tensors of a method, for one client or a cohort of them.

Every tensor has a leading dimension C, one row a client: clients share the backbone and nothing
else, and AdamW works element by element, so C clients in one tensor train exactly as C alone.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mops_fl.wire.records import GATE, GATE_HIDDEN, PROMPTS, Tensors


class Trainable:
    """Float32 leaf tensors by name, each with a leading client dimension."""

    def __init__(
        self,
        clients: Sequence[Tensors],
        device: torch.device,
        trained: Collection[str] | None = None,
    ) -> None:
        """Stack the tensors of C clients.

        Args:
            clients: for each client its tensors, names and shapes as `Method.initial` gives them.
            device: where they live.
            trained: names of those with a gradient; None for all.
        """
        self.clients = len(clients)
        """C."""
        self.tensors: dict[str, Tensor] = {
            name: torch.tensor(
                np.stack([client[name] for client in clients]), dtype=torch.float32, device=device
            ).requires_grad_(trained is None or name in trained)
            for name in clients[0]
        }

    @property
    def prompts(self) -> Tensor | None:
        """[C, K, d]; None for a method without prompt vectors."""
        return self.tensors.get(PROMPTS)

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return GATE_HIDDEN in self.tensors

    def log_gate(self, features: Tensor, owner: Sequence[int] | None) -> Tensor:
        """``log g`` with ``g = softmax(W₂ relu(W₁ avg_emb))`` (paper, "The gating function").

        Args:
            features: [B, d] float32, what `Mixture.gate_features` gives.
            owner: [B], the client of each row; None for one client.

        Returns:
            [B, E] float32; each row sums to 1 after `exp`.
        """
        first, second = (self.tensors[name] for name in GATE)
        if owner is None:
            scores = F.linear(F.relu(F.linear(features, first[0])), second[0])
        else:
            index = torch.tensor(owner, device=features.device)
            hidden = F.relu(torch.einsum("bd,bhd->bh", features, first[index]))
            scores = torch.einsum("bh,beh->be", hidden, second[index])
        return scores.log_softmax(-1)

    def of_client(self, client: int) -> Tensors:
        """The tensors of one client that are trained, as numpy arrays."""
        return {
            name: tensor[client].detach().cpu().numpy()
            for name, tensor in self.tensors.items()
            if tensor.requires_grad
        }

    def parameters(self) -> list[Tensor]:
        """The tensors that are trained."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]
