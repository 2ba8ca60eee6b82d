"""The one local training loop, for one client or a cohort of them in one forward pass."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mops_fl.activity import OnStep
from mops_fl.config import TrainConfig
from mops_fl.data import Tokenised
from mops_fl.errors import DataError
from mops_fl.metrics import Tally
from mops_fl.models.mixture import Mixture
from mops_fl.models.trainable import Trainable
from mops_fl.seeding import numpy_generator
from mops_fl.wire.records import Tensors


@dataclass(frozen=True)
class LocalResult:
    """What one client's local steps gave."""

    tensors: Tensors
    """The trained tensors."""
    examples: int
    """Training examples that the client has: its weight in FedAvg."""
    steps: int
    tally: Tally
    """Losses of the batches, each before its step."""
    seconds: float
    gate: tuple[float, ...] = ()
    """The mean gate weight of each expert over the batches; empty without a gate."""
    broken: bool = False
    """Whether a gradient was not finite, and so counted as zero."""


@dataclass(frozen=True)
class LocalData:
    """One client's training examples and the order in which it sees them."""

    examples: Sequence[Tokenised]
    order: tuple[int, ...]
    """Examples of all steps one after the other, as `draw_order` gives them."""


def draw_order(examples: int, wanted: int, seed: int, *purpose: str | int) -> tuple[int, ...]:
    """Indices of `wanted` examples: reshuffled passes over all of them.

    Raises:
        DataError: there are no examples.
    """
    if not examples:
        raise DataError(f"no training examples for {'/'.join(map(str, purpose))}")
    generator = numpy_generator(seed, "order", *purpose)

    def passes() -> Iterator[int]:
        while True:
            yield from generator.permutation(examples).tolist()

    stream = passes()
    return tuple(next(stream) for _ in range(wanted))


def train(
    mixture: Mixture,
    clients: Sequence[Tensors],
    data: Sequence[LocalData],
    config: TrainConfig,
    *,
    trained: Collection[str] | None = None,
    on_step: OnStep = lambda _done, _of: None,
) -> list[LocalResult]:
    """Local steps of C clients, each from its own tensors on its own examples.

    Every client takes ``config.local_steps`` steps of AdamW without weight decay on the mean loss
    of its batch's answer tokens. Clients share nothing but the backbone.

    Args:
        mixture: the forward pass.
        clients: initial tensors of each client.
        data: examples and order of each client.
        config: steps, batch size, learning rate.
        trained: names of the tensors that are trained; None for all.
        on_step: called after every step with the number of steps taken, and of all.

    Returns:
        One result a client, in the same order.
    """
    began = time.perf_counter()
    device = mixture.backbone.device
    trainable = Trainable(clients, device, trained)
    optimiser = torch.optim.AdamW(trainable.parameters(), lr=config.learning_rate, weight_decay=0.0)
    owner = np.repeat(np.arange(len(clients)), config.batch_size).tolist()
    sums = torch.zeros(len(clients), dtype=torch.float64, device=device)
    # [C, E], sums of gate weights
    experts = mixture.layout.experts if trainable.gated else 0
    gates = torch.zeros(len(clients), experts, dtype=torch.float64, device=device)
    tokens = np.zeros(len(clients), np.int64)
    broken = torch.zeros(len(clients), dtype=torch.bool, device=device)
    sent = [leaf.detach().clone() for leaf in trainable.parameters()] if config.proximal else []
    for step in range(config.local_steps):
        part = slice(step * config.batch_size, (step + 1) * config.batch_size)
        examples = [own.examples[i] for own in data for i in own.order[part]]
        counts = np.bincount(owner, [len(example.answer) for example in examples])
        tokens += counts.astype(np.int64)
        for group, (nll, gate) in mixture.in_groups(
            partial(_gradient, mixture, trainable, examples, owner, counts, broken),
            examples,
            owner,
            training=True,
        ):
            of = torch.tensor([owner[i] for i in group], device=device)
            sums.index_add_(0, of, nll)
            if gate is not None:
                gates.index_add_(0, of, gate)
        for leaf, start in zip(trainable.parameters() if sent else [], sent, strict=True):
            assert leaf.grad is not None
            leaf.grad += config.proximal * (leaf.detach() - start)
        optimiser.step()
        optimiser.zero_grad()
        on_step(step + 1, config.local_steps)
    seconds = (time.perf_counter() - began) / len(clients)
    return [
        LocalResult(
            tensors=trainable.of_client(client),
            examples=len(own.examples),
            steps=config.local_steps,
            tally=Tally(sums[client].item(), int(tokens[client])),
            seconds=seconds,
            gate=tuple((gates[client] / gates[client].sum()).tolist()) if experts else (),
            broken=bool(broken[client]),
        )
        for client, own in enumerate(data)
    ]


def _gradient(
    mixture: Mixture,
    trainable: Trainable,
    examples: Sequence[Tokenised],
    owner: Sequence[int],
    counts: np.ndarray,
    broken: torch.Tensor,
    group: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Add the gradient of some of a step's examples, all of it or nothing.

    A client's gradient of a tensor counts as zero where it is not finite: it was sent tensors that
    nothing can be computed with, and its cohort has no part in that. `broken` [C] notes it.

    Returns:
        Losses [B] and gate weights [B, E], None without a gate.
    """
    batch, states, features = mixture.prepare([examples[i] for i in group])
    owners = [owner[i] for i in group]
    nll, gate = mixture.nll(trainable, batch, states, features, owners)
    shares = torch.tensor(1 / counts[owners], dtype=nll.dtype, device=nll.device)
    leaves = trainable.parameters()
    for leaf, gradient in zip(leaves, torch.autograd.grad(nll @ shares, leaves), strict=True):
        finite = gradient.isfinite().flatten(1).all(1)
        broken |= ~finite
        own = gradient.where(finite.view(-1, *[1] * (gradient.dim() - 1)), 0)
        leaf.grad = own if leaf.grad is None else leaf.grad + own
    return nll.detach().double(), None if gate is None else gate.detach().double()
