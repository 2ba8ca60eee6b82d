"""The client under attack: the real trainer, and what the attacker computes with the same model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from mops_fl.config import Config
from mops_fl.data import Tokenised
from mops_fl.methods import method_of
from mops_fl.models.mixture import Mixture
from mops_fl.models.trainable import Trainable
from mops_fl.training.local import LocalData, LocalResult, draw_order, train
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED, Tensors


class Victim:
    """One frozen model and the tensors of round 1; any rows may be a client's.

    The attacker is the server: it has the model, P¹ and what it sends, and so computes what a row
    would do to them.
    """

    def __init__(self, config: Config) -> None:
        """Nothing is loaded before it is asked for."""
        self.config, self.trainer = config, Trainer(config)

    @cached_property
    def _pretrained(self) -> Tensors:
        sizes = self.trainer.model_facts.sizes
        initial = method_of(self.config.method).initial(self.config, sizes, self.config.seed)
        return self.trainer.pretrain(initial)

    @property
    def start(self) -> Tensors:
        """What an honest server sends in round 1, to be trained."""
        return {name: own for name, own in self._pretrained.items() if name != PRETRAINED}

    @property
    def frozen(self) -> Tensors:
        """P¹, where there is one."""
        return {name: own for name, own in self._pretrained.items() if name == PRETRAINED}

    @cached_property
    def mixture(self) -> Mixture:
        """The forward pass past P¹."""
        return self.trainer.mixture(self.frozen)

    def rows(self, longest: int) -> list[Tokenised]:
        """The corpus' rows of at most so many tokens, in its order, no question twice."""
        unknown = self.trainer.tokenised.unknown
        found: dict[tuple[int, ...], Tokenised] = {}
        for index, row in enumerate(self.trainer.tokenised.examples):
            if index not in unknown and len(row.question) + len(row.answer) <= longest:
                found.setdefault(row.question, row)
        return list(found.values())

    def trained(
        self, start: Tensors, rows: Sequence[Tokenised], steps: int, *purpose: str | int
    ) -> LocalResult:
        """A client's round, by the client's own code.

        Args:
            start: what the server sends.
            rows: all that the client holds.
            steps: local steps, a row each.
            purpose: with the seed, fixes the order of the rows.
        """
        order = draw_order(len(rows), steps, self.config.seed, *purpose)
        config = replace(self.config.train, local_steps=steps, batch_size=1)
        (result,) = train(self.mixture, [start], [LocalData(rows, order)], config)
        return result

    def gradient(self, at: Tensors, row: Tokenised) -> Tensors:
        """Of the client's loss on one row, at the tensors that the server sends."""
        trainable = Trainable([at], self.mixture.backbone.device)
        nll, _ = self.mixture.nll(trainable, *self.mixture.prepare([row]))
        leaves = trainable.parameters()
        found = torch.autograd.grad(nll.sum() / len(row.answer), leaves)
        return {
            name: leaf[0].cpu().numpy() for name, leaf in zip(trainable.tensors, found, strict=True)
        }

    @torch.no_grad()
    def losses(self, at: Tensors, rows: Sequence[Tokenised], together: int = 8) -> np.ndarray:
        """Loss per answer token of each row."""
        trainable, found = Trainable([at], self.mixture.backbone.device), []
        for first in range(0, len(rows), together):
            part = rows[first : first + together]
            nll, _ = self.mixture.nll(trainable, *self.mixture.prepare(part))
            found += [sum_ / len(row.answer) for sum_, row in zip(nll.tolist(), part, strict=True)]
        return np.array(found)

    def features(self, rows: Sequence[Tokenised], together: int = 16) -> np.ndarray:
        """The gate's input of each row's question, [rows, d]."""
        parts = (rows[first : first + together] for first in range(0, len(rows), together))
        questions = ([replace(row, answer=(0,)) for row in part] for part in parts)
        found = [self.mixture.prepare(part)[2].cpu().numpy() for part in questions]
        return np.concatenate(found).astype(np.float64)

    @torch.no_grad()
    def next_token(self, tokens: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of what follows by the model without prompts [V]."""
        backbone = self.mixture.backbone
        states = backbone.embed(torch.tensor([tokens], device=backbone.device))
        last = backbone.run(states, range(backbone.num_layers))[0, -1:]
        return backbone.logits(last)[0].log_softmax(-1).cpu()


def flat(tensors: Tensors) -> np.ndarray:
    """All numbers, one behind the other."""
    return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors)])
