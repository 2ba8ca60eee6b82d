"""Mixture of Prompts: the forward pass of Dun et al. (AAAI 2025), Algorithm 1, on a frozen LLaMA.

Prompt vectors come before the tokens and are causal among themselves, so they never depend on the
tokens. The pass is therefore two streams through the same layers: the prompts once, whose keys and
values are kept, then the tokens, who see them. In ``gate-mode = attention`` one stream of prompts
serves all rows of a client; in ``hidden`` the gate scales the prompts' states, a stream for each
row. Without a gate this is FedPrompt; without prompts it is the plain LLaMA.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mops_fl.config import PromptConfig
from mops_fl.data import Tokenised
from mops_fl.models.attention import KeyValues
from mops_fl.models.backbone import Backbone
from mops_fl.models.trainable import Trainable


@dataclass(frozen=True)
class Batch:
    """B examples, padded on the right; the last answer token is predicted but never fed."""

    ids: Tensor
    """[B, T] token ids of question and answer."""
    question_lengths: Tensor
    """[B], tokens of the question."""
    rows: Tensor
    """[N], the row of each answer token."""
    columns: Tensor
    """[N], the position that predicts it."""
    targets: Tensor
    """[N], its id."""

    def __len__(self) -> int:
        return len(self.ids)


def collate(examples: Sequence[Tokenised], device: torch.device) -> Batch:
    """A batch of examples in the order given."""
    fed = [example.question + example.answer[:-1] for example in examples]
    ids = np.zeros((len(fed), max(map(len, fed))), np.int64)
    for row, tokens in zip(ids, fed, strict=True):
        row[: len(tokens)] = tokens
    starts = [len(example.question) - 1 for example in examples]
    counts = [len(example.answer) for example in examples]
    arrays = (
        ids,
        np.array(starts) + 1,
        np.repeat(np.arange(len(examples)), counts),
        np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)]),
        np.concatenate([np.array(example.answer) for example in examples]),
    )
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


class Mixture:
    """The forward pass for one backbone, one layout of prompts and one pretrained prompt."""

    def __init__(
        self, backbone: Backbone, layout: PromptConfig, layer: int, pretrained: Tensor | None
    ) -> None:
        """Run P¹ through the prefix once and keep what the tokens will need of it.

        Args:
            backbone: the frozen LLaMA.
            layout: experts, gate and injection.
            layer: L_int, the index of the layer whose input receives the prompts.
            pretrained: P¹ [K₁, d], or None for no pretrained prompt.
        """
        self.backbone, self.layout = backbone, layout
        self._prefix, self._suffix = range(layer), range(layer, backbone.num_layers)
        self._prefix_cache: KeyValues | None = None
        self._pretrained_states = torch.zeros(1, 0, backbone.hidden_size, device=backbone.device)
        if pretrained is not None:
            self._prefix_cache = KeyValues()
            with torch.no_grad():
                self._pretrained_states = backbone.run(
                    pretrained.to(backbone.device, backbone.dtype)[None],
                    self._prefix,
                    past=self._prefix_cache,
                )

    @torch.no_grad()
    def prefix_states(self, batch: Batch) -> Tensor:
        """States of the tokens at L_int, [B, T, d]: constants of (backbone, P¹, L_int, tokens)."""
        length = self._pretrained_states.shape[1]
        past = self._prefix_cache.before(None, len(batch)) if self._prefix_cache else None
        return self.backbone.run(self.backbone.embed(batch.ids), self._prefix, length, past)

    @torch.no_grad()
    def gate_features(self, states: Tensor, batch: Batch) -> Tensor:
        """The gate's input, ``avg_emb`` [B, d] float32.

        The mean over P¹ and the question of the states at L_int, each divided by its root mean
        square. The answer is left out, since it is what the gate helps to predict.
        """
        positions = torch.arange(states.shape[1], device=states.device)
        question = (positions < batch.question_lengths[:, None]).float()
        summed = torch.einsum("bt,btd->bd", question, _rms_normalised(states))
        constant = _rms_normalised(self._pretrained_states)[0]
        count = batch.question_lengths[:, None] + len(constant)
        return (summed + constant.sum(0)) / count

    def nll(
        self,
        trainable: Trainable,
        batch: Batch,
        states: Tensor,
        features: Tensor | None,
        owner: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Negative log-likelihood of each answer.

        Args:
            trainable: prompts, and the gate of a gated method.
            batch: the examples.
            states: what `prefix_states` gives for them.
            features: what `gate_features` gives for them; used by a gated method only.
            owner: [B], the client of each row in a cohort; None for one client.

        Returns:
            [B], sums over the answer's tokens in nats (float32); and the gate weights [B, E] as
            ``gate-scale`` has them, None without a gate.
        """
        gate = None
        log_gate = None
        if trainable.gated:
            assert features is not None
            log_gate = trainable.log_gate(features, owner)
            if self.layout.gate_scale == "mean-one":
                log_gate = log_gate + float(np.log(self.layout.experts))
            gate = log_gate.exp()
        out = self._run_suffix(trainable.prompts, states, log_gate, owner)
        logits = self.backbone.logits(out[batch.rows, batch.columns])
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        return losses.new_zeros(len(batch)).index_add(0, batch.rows, losses), gate

    def _run_suffix(
        self, prompts: Tensor, states: Tensor, log_gate: Tensor | None, owner: Tensor | None
    ) -> Tensor:
        """Tokens [B, T, d] from L_int to the last layer's output, past the prompts [C, K, d]."""
        prompts = prompts.to(self.backbone.dtype)
        bias = scale = None
        if log_gate is not None:
            # each expert's weight for each of its vectors: [B, E] -> [B, K]
            per_prompt = log_gate.repeat_interleave(self.layout.prompts_per_expert, -1)
            if self.layout.gate_mode == "attention":
                bias = per_prompt
            else:
                scale = per_prompt.exp()[..., None].to(prompts.dtype)
                prompts = prompts.expand(len(states), -1, -1) if owner is None else prompts[owner]
                owner = None
        kept = self._pretrained_states
        if self.layout.injection == "append" and kept.shape[1]:
            prompts = torch.cat((kept.expand(len(prompts), -1, -1), prompts), 1)
            if scale is not None:
                scale = F.pad(scale, (0, 0, kept.shape[1], 0), value=1.0)
        cache = KeyValues()
        self.backbone.run(prompts, self._suffix, past=cache, scale=scale)
        return self.backbone.run(
            states,
            self._suffix,
            prompts.shape[1],
            cache.before(owner, len(states)),
            prompt_bias=bias,
        )


def _rms_normalised(states: Tensor) -> Tensor:
    """Each state divided by its root mean square, float32."""
    states = states.float()
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
