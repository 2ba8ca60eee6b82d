"""The trainable tensors: expert prompts and the gate, for one client or a cohort of them.

Every tensor has a leading dimension C, one row a client: clients share the backbone and nothing
else, and AdamW works element by element, so C clients in one tensor train exactly as C alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mops_fl.config import PromptConfig
from mops_fl.records import GATE, GATE_HIDDEN, GATE_OUTPUT, PROMPTS, Tensors
from mops_fl.seeding import numpy_generator

INIT_STD = 0.02
"""Standard deviation of randomly initialised prompt vectors."""


class Trainable:
    """Float32 leaf tensors by name, each with a leading client dimension."""

    def __init__(self, clients: Sequence[Tensors], device: torch.device) -> None:
        """Stack the tensors of C clients.

        Args:
            clients: for each client its tensors, names and shapes as `initial_tensors` gives them.
            device: where they live.
        """
        self.tensors: dict[str, Tensor] = {
            name: torch.tensor(
                np.stack([client[name] for client in clients]), dtype=torch.float32, device=device
            ).requires_grad_()
            for name in clients[0]
        }

    @property
    def prompts(self) -> Tensor:
        """[C, K, d]."""
        return self.tensors[PROMPTS]

    @property
    def gated(self) -> bool:
        """Whether there is a gate: MoPs, not FedPrompt."""
        return GATE_HIDDEN in self.tensors

    def freeze_gate(self) -> None:
        """Leave the gate as it is."""
        for name in GATE:
            self.tensors[name].requires_grad_(False)

    def log_gate(self, features: Tensor, owner: Tensor | None) -> Tensor:
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
            hidden = F.relu(torch.einsum("bd,bhd->bh", features, first[owner]))
            scores = torch.einsum("bh,beh->be", hidden, second[owner])
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


def initial_tensors(prompts: PromptConfig, hidden_size: int, seed: int, gated: bool) -> Tensors:
    """Seeded initial values from shapes alone, without a backbone.

    Prompts are N(0, 0.02²); W₁ is N(0, 1) and W₂ N(0, 1/d_g).

    Returns:
        `prompts` [K, d], and for a gated method `gate.hidden` [d_g, d] and `gate.output` [E, d_g].
    """
    draw = numpy_generator(seed, "initial", PROMPTS).standard_normal
    tensors = {PROMPTS: INIT_STD * draw((prompts.num_prompts, hidden_size), np.float32)}
    if gated:
        shapes = {
            GATE_HIDDEN: (prompts.gate_hidden, hidden_size),
            GATE_OUTPUT: (prompts.experts, prompts.gate_hidden),
        }
        # the gate's input has norm 1 at most, its hidden units are about 1
        stds = {GATE_HIDDEN: 1.0, GATE_OUTPUT: prompts.gate_hidden**-0.5}
        for name, shape in shapes.items():
            draw = numpy_generator(seed, "initial", name).standard_normal
            tensors[name] = np.float32(stds[name]) * draw(shape, np.float32)
    return tensors
