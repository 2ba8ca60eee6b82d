"""Losses and gate weights of fixed prompts on held-out examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mops_fl.data import Tokenised
from mops_fl.metrics import GateSum, Tally
from mops_fl.models import Mixture, Trainable, collate

_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Evaluation:
    """Sums for each task."""

    tallies: dict[str, Tally]
    gate: dict[str, GateSum]
    """Gate weights as ``g`` sums to 1, whatever `gate-scale` is; empty without a gate."""


@torch.no_grad()
def evaluate(mixture: Mixture, trainable: Trainable, examples: Sequence[Tokenised]) -> Evaluation:
    """Evaluate one client's tensors on examples, batched by length."""
    losses = [0.0] * len(examples)
    gates: list[tuple[float, ...]] = [()] * len(examples)
    for indices in _batches(examples):
        batch = collate([examples[i] for i in indices], mixture.backbone.device)
        states = mixture.prefix_states(batch)
        features = mixture.gate_features(states, batch) if trainable.gated else None
        nll, gate = mixture.nll(trainable, batch, states, features)
        for index, value in zip(indices, nll.tolist(), strict=True):
            losses[index] = value
        if gate is not None:
            shares = gate / gate.sum(-1, keepdim=True)
            for index, weights in zip(indices, shares.tolist(), strict=True):
                gates[index] = tuple(weights)
    tallies: dict[str, Tally] = {}
    sums: dict[str, GateSum] = {}
    for example, loss, weights in zip(examples, losses, gates, strict=True):
        task = example.task
        tallies[task] = tallies.get(task, Tally()) + Tally(loss, len(example.answer))
        if weights:
            none = GateSum((0.0,) * len(weights), 0)
            sums[task] = sums.get(task, none) + GateSum(weights, 1)
    return Evaluation(tallies, sums)


def _batches(examples: Sequence[Tokenised]) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of a bounded number of padded tokens."""
    lengths = [len(example.question) + len(example.answer) for example in examples]
    batch: list[int] = []
    for index in sorted(range(len(examples)), key=lambda i: (lengths[i], i)):
        if batch and lengths[index] * (len(batch) + 1) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
