"""Losses and gate weights of fixed prompts on held-out examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mops_fl.activity import OnStep
from mops_fl.data import Tokenised
from mops_fl.metrics import GateSum, Tally
from mops_fl.models.mixture import Mixture
from mops_fl.models.trainable import Trainable


@dataclass(frozen=True)
class Evaluation:
    """Sums for each task of one set of examples."""

    tallies: dict[str, Tally]
    gate: dict[str, GateSum]
    """Gate weights as ``g`` sums to 1, whatever `gate-scale` is; empty without a gate."""


def evaluate(mixture: Mixture, trainable: Trainable, examples: Sequence[Tokenised]) -> Evaluation:
    """Evaluate one client's tensors on examples, batched by length."""
    (result,) = evaluate_clients(mixture, trainable, [examples])
    return result


@torch.no_grad()
def evaluate_clients(
    mixture: Mixture,
    trainable: Trainable,
    sets: Sequence[Sequence[Tokenised]],
    owner: Sequence[int] | None = None,
    on_step: OnStep = lambda _done, _of: None,
) -> list[Evaluation]:
    """Evaluate sets of examples of several clients together, batched by length.

    Args:
        mixture: the forward pass.
        trainable: the tensors of each client, or one set for all of them.
        sets: of examples.
        owner: the client of each set; one a set, in their order, by default.
        on_step: called after every batch with the number of examples evaluated, and of all.

    Returns:
        One result a set, in the same order.
    """
    examples = [example for own in sets for example in own]
    if not examples:
        return [Evaluation({}, {}) for _ in sets]
    sizes = [len(own) for own in sets]
    part_of = np.repeat(np.arange(len(sets)), sizes)
    whose = np.arange(len(sets)) if owner is None else np.array(owner)
    owners = [0] * len(examples) if trainable.clients == 1 else whose[part_of].tolist()
    losses = [0.0] * len(examples)
    gates: list[tuple[float, ...]] = [()] * len(examples)
    done = 0

    def forward(group: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, states, features = mixture.prepare([examples[i] for i in group])
        return mixture.nll(trainable, batch, states, features, [owners[i] for i in group])

    for group, (nll, gate) in mixture.in_groups(forward, examples, owners, training=False):
        for index, value in zip(group, nll.tolist(), strict=True):
            losses[index] = value
        if gate is not None:
            shares = gate / gate.sum(-1, keepdim=True)
            for index, weights in zip(group, shares.tolist(), strict=True):
                gates[index] = tuple(weights)
        done += len(group)
        on_step(done, len(examples))
    parts = np.split(np.arange(len(examples)), np.cumsum(sizes)[:-1])
    return [_summed([(examples[i], losses[i], gates[i]) for i in part]) for part in parts]


def _summed(rows: Iterable[tuple[Tokenised, float, tuple[float, ...]]]) -> Evaluation:
    """Sums for each task over examples with their losses and gate weights."""
    tallies: dict[str, Tally] = {}
    sums: dict[str, GateSum] = {}
    for example, loss, weights in rows:
        task = example.task
        tallies[task] = tallies.get(task, Tally()) + Tally(loss, len(example.answer))
        if weights:
            own = GateSum.of(weights)
            sums[task] = sums[task] + own if task in sums else own
    return Evaluation(tallies, sums)
