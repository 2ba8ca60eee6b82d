"""Mixture of Prompts: the forward pass of Dun et al. (AAAI 2025), Algorithm 1, on a frozen LLaMA.

Prompt vectors come before the tokens and are causal among themselves, so they never depend on the
tokens. In ``gate-mode = attention`` one set of them therefore serves all rows of a client; in
``hidden`` the gate scales their states, and with ``gate-top`` it picks them, a set for each row.
Sets and rows go through the layers as one sequence without padding (`Packing`). Without a gate this
is FedPrompt; without prompts it is the plain LLaMA, in whose layers a method may have `Adapters`.

What was tried to make a step fast, with its numbers, stands in ``experiments/LOG.md``.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mops_fl.config import AdapterConfig, PromptConfig
from mops_fl.data import Tokenised
from mops_fl.methods import Method
from mops_fl.metrics import LARGEST_LOSS
from mops_fl.models.adapters import Adapters
from mops_fl.models.attention import KeyValues, Packing, sequence
from mops_fl.models.backbone import Backbone
from mops_fl.models.memory import Result
from mops_fl.models.prefix_store import Kept, PrefixStore
from mops_fl.models.trainable import Trainable


@dataclass(frozen=True)
class Batch:
    """B examples, their tokens one after the other; the last of an answer is never fed."""

    lengths: tuple[int, ...]
    """Tokens fed of each example."""
    ids: Tensor
    """[M] token ids of questions and answers."""
    row: Tensor
    """[M], the example of each token."""
    asked: Tensor
    """[Q], the tokens of the questions."""
    places: Tensor
    """[A], the token that predicts each answer token."""
    targets: Tensor
    """[A], its id."""

    def __len__(self) -> int:
        return len(self.lengths)


def collate(examples: Sequence[Tokenised], device: torch.device) -> Batch:
    """A batch of examples in the order given."""
    questions = [len(example.question) for example in examples]
    lengths = [example.fed for example in examples]
    row = np.repeat(np.arange(len(examples)), lengths)
    column = np.concatenate([np.arange(length) for length in lengths])
    question = np.array(questions)[row]
    arrays = (
        np.concatenate([example.question + example.answer[:-1] for example in examples]),
        row,
        np.flatnonzero(column < question),
        np.flatnonzero(column >= question - 1),
        np.concatenate([np.array(example.answer) for example in examples]),
    )
    tensors = (torch.from_numpy(array).to(device) for array in arrays)
    return Batch(tuple(lengths), *tensors)


@dataclass(frozen=True)
class _Sets:
    """What goes into the layers from L_int on before the tokens."""

    packing: Packing
    prompts: Tensor
    """[P, K', d], vectors of P¹ among them where they are kept."""
    bias: Tensor | None
    """[B, K] on the attention to the vectors, None without a gate that acts there."""
    scale: Tensor | None
    """[1, N, 1], the factor of every layer's input, None without a gate that acts there."""
    client: Tensor | None
    """[N], the client of each position; None for one client."""


class Mixture:
    """The forward pass for one backbone, one layout of prompts and one pretrained prompt."""

    def __init__(
        self,
        backbone: Backbone,
        layout: PromptConfig,
        layer: int,
        pretrained: Tensor | None,
        store: PrefixStore | None = None,
        method: Method = Method(),  # noqa: B008 - it has no state
        adapters: AdapterConfig | None = None,
    ) -> None:
        """Run P¹ through the prefix once and keep what the tokens will need of it.

        Args:
            backbone: the frozen LLaMA.
            layout: experts, gate and injection.
            layer: L_int, the index of the layer whose input receives the prompts.
            pretrained: P¹ [K₁, d], or None for no pretrained prompt.
            store: keeps what `prepare` computes for each example.
            method: says what it changes inside the layers.
            adapters: its configuration there; may be None for a method that changes nothing there.
        """
        self.backbone, self.layout, self._store = backbone, layout, store
        self._method, self._adapters = method, adapters
        self._prefix, self._suffix = range(layer), range(layer, backbone.num_layers)
        self._prefix_cache: KeyValues | None = None
        self._pretrained_states = torch.zeros(
            (1, 0, backbone.hidden_size), dtype=backbone.dtype, device=backbone.device
        )
        if pretrained is not None:
            self._prefix_cache = KeyValues()
            with torch.no_grad():
                self._pretrained_states = backbone.run(
                    pretrained.to(backbone.device, backbone.dtype)[None],
                    self._prefix,
                    past=self._prefix_cache,
                )

    def prepare(self, examples: Sequence[Tokenised]) -> tuple[Batch, Tensor, Tensor]:
        """A batch of examples, their `prefix_states` and their `gate_features`.

        With a store, what it lacks is computed for each example alone, so that neither its
        neighbours nor the store's contents are seen in the numbers.
        """
        batch = collate(examples, self.backbone.device)
        if self._store is None:
            states = self.prefix_states(batch)
            return batch, states, self.gate_features(states, batch)
        kept = [self._store.get(example, partial(self._alone, example)) for example in examples]
        states = torch.cat([states for states, _ in kept])
        return batch, states, torch.stack([features for _, features in kept])

    def _alone(self, example: Tokenised) -> Kept:
        batch = collate([example], self.backbone.device)
        states = self.prefix_states(batch)
        return states, self.gate_features(states, batch)[0]

    @torch.no_grad()
    def prefix_states(self, batch: Batch) -> Tensor:
        """States of the tokens at L_int, [M, d]: constants of (backbone, P¹, L_int, tokens)."""
        count, device = self._pretrained_states.shape[1], self.backbone.device
        # without P¹, one set of no vectors
        sets = 0 if self._prefix_cache else 1
        packing = Packing(sets, count, batch.lengths, None, device, self._prefix_cache)
        embedded = self.backbone.embed(batch.ids)[None]
        return self.backbone.run(embedded, self._prefix, packing.positions, packing=packing)[0]

    @torch.no_grad()
    def gate_features(self, states: Tensor, batch: Batch) -> Tensor:
        """The gate's input, ``avg_emb`` [B, d] float32.

        The mean over P¹ and the question of the states at L_int, each divided by its norm: a few
        states and channels of a LLaMA are huge, and with larger inputs a step of Adam would move
        all hidden units of the gate below zero together. The answer is left out, since it is what
        the gate helps to predict.
        """
        row = batch.row[batch.asked]
        constant = _unit(self._pretrained_states)[0]
        summed = constant.sum(0).repeat(len(batch), 1)
        summed = summed.index_add(0, row, _unit(states[batch.asked]))
        counts = torch.bincount(row, minlength=len(batch)) + len(constant)
        return summed / counts[:, None]

    def in_groups(
        self,
        function: Callable[[list[int]], Result],
        examples: Sequence[Tokenised],
        owner: Sequence[int],
        *,
        training: bool,
    ) -> Iterator[tuple[list[int], Result]]:
        """Call a function that runs `nll` on all examples, as many at once as memory holds.

        See `mops_fl.models.memory.Memory.in_groups`.
        """
        prompts = (self._top or self.layout.experts) * self.layout.prompts_per_expert
        if self.layout.injection == "append":
            prompts += self._pretrained_states.shape[1]
        sets = range(len(examples)) if self._set_a_row else owner
        layers = len(self._suffix) if training else 1
        return self.backbone.memory.in_groups(function, examples, sets, prompts, layers)

    @property
    def _top(self) -> int:
        """Experts that an example passes; 0 for all."""
        top = self.layout.gate_top
        return 0 if top == self.layout.experts else top

    @property
    def _set_a_row(self) -> bool:
        """Whether every row has vectors of its own, where there is a gate."""
        return self.layout.gate_mode == "hidden" or bool(self._top)

    def nll(
        self,
        trainable: Trainable,
        batch: Batch,
        states: Tensor,
        features: Tensor | None,
        owner: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Negative log-likelihood of each answer.

        Args:
            trainable: prompts, and the gate of a gated method.
            batch: the examples.
            states: what `prefix_states` gives for them.
            features: what `gate_features` gives for them; used by a gated method only.
            owner: [B], the client of each row; may be None for one client.

        Returns:
            [B], sums over the answer's tokens in nats (float32); and the gate weights [B, E] as
            ``gate-scale`` has them, None without a gate.
        """
        owner = None if trainable.clients == 1 else owner
        log_gate = gate = None
        if trainable.gated:
            assert features is not None
            log_gate = trainable.log_gate(features, owner)
            if self.layout.gate_scale == "mean-one":
                log_gate = log_gate + float(np.log(self.layout.experts))
            gate = log_gate.exp()
        sets = self._sets(trainable.prompts, batch, log_gate, owner)
        adapters = None
        if self._adapters is not None and self._method.adapted:
            tensors = trainable.tensors
            adapters = Adapters(self._method, self._adapters, tensors, sets.client)
        out = self._run_suffix(sets, states, batch, adapters)
        losses = F.cross_entropy(self.backbone.logits(out), batch.targets, reduction="none")
        # tensors from elsewhere may be such that nothing can be computed with them
        losses = losses.nan_to_num(nan=LARGEST_LOSS, posinf=LARGEST_LOSS).clamp(max=LARGEST_LOSS)
        row = batch.row[batch.places]
        return losses.new_zeros(len(batch)).index_add(0, row, losses), gate

    def _sets(
        self,
        prompts: Tensor | None,
        batch: Batch,
        log_gate: Tensor | None,
        owner: Sequence[int] | None,
    ) -> _Sets:
        """The sets of vectors, how they are laid out with the rows, and how the gate acts on them.

        Args:
            prompts: [C, K, d]; None for none.
            batch: the examples.
            log_gate: [B, E], None without a gate.
            owner: [B], the client of each row; None for one client.
        """
        device = batch.ids.device
        if prompts is None:
            prompts = self._pretrained_states.new_zeros(1, 0, self.backbone.hidden_size)
            held, set_of = None, None
        else:
            prompts, held, set_of = _present(prompts.to(self.backbone.dtype), owner)
        count, positions, bias, weights = prompts.shape[1], None, None, None
        if log_gate is not None:
            if self._set_a_row:
                prompts = prompts.expand(len(batch), -1, -1) if set_of is None else prompts[set_of]
                held, set_of = owner, None
            if self._top:
                prompts, positions, log_gate = self._chosen(prompts, log_gate)
            # each expert's weight for each of its vectors: [B, E] -> [B, K]
            bias = log_gate.repeat_interleave(self.layout.prompts_per_expert, -1)
            if self.layout.gate_mode == "hidden":
                weights, bias = bias.exp()[..., None].to(prompts.dtype), None
        kept = self._pretrained_states
        if self.layout.injection == "append" and (before := kept.shape[1]):
            prompts = torch.cat((kept.expand(len(prompts), -1, -1), prompts), 1)
            count += before
            if positions is not None:
                positions = F.pad(positions + before, (before, 0))
                positions[:, :before] = torch.arange(before, device=device)
            if weights is not None:
                weights = F.pad(weights, (0, 0, before, 0), value=1.0)
        packing = Packing(
            *(len(prompts), prompts.shape[1], batch.lengths, set_of, device),
            positions=positions,
            first=count,
        )
        scale = client = None
        if weights is not None:
            scale = sequence(weights, weights.new_ones(len(batch.ids), 1))
        if owner is not None:
            rows = torch.tensor(owner, device=device)[batch.row]
            whose = torch.tensor(held if held is not None else [0] * len(prompts), device=device)
            client = torch.cat((whose.repeat_interleave(prompts.shape[1]), rows))
        return _Sets(packing, prompts, bias, scale, client)

    def _chosen(self, prompts: Tensor, log_gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors of each row's best experts in the order of all, their positions among all
        [B, k · m], and what the gate gives to these experts [B, k]; m vectors are an expert.
        """
        each, size = self.layout.prompts_per_expert, prompts.shape[-1]
        best = log_gate.topk(self._top).indices.sort(-1).values
        places = best[..., None] * each + torch.arange(each, device=best.device)
        positions = places.flatten(1)
        picked = prompts.gather(1, positions[..., None].expand(-1, -1, size))
        return picked, positions, log_gate.gather(-1, best)

    def _run_suffix(
        self, sets: _Sets, states: Tensor, batch: Batch, adapters: Adapters | None
    ) -> Tensor:
        """States of the tokens at L_int [M, d] to the last layer's output where an answer token is
        predicted, [A, d].
        """
        llama, packing, scale = self.backbone.model.model, sets.packing, sets.scale
        wanted = packing.first_token + batch.places
        states = sequence(sets.prompts, states)
        attention = {
            "position_embeddings": llama.rotary_emb(states, packing.positions),
            "packing": packing,
            "prompt_bias": sets.bias,
        }
        layers = {index: llama.layers[index] for index in self._suffix}
        *inner, last = layers.values()
        with adapters.within(layers) if adapters else contextlib.nullcontext():
            for layer in inner:
                states = layer(states if scale is None else states * scale, **attention)
            states = states if scale is None else states * scale
            attended = last.self_attn(last.input_layernorm(states), **attention)[0]
            # nobody needs the last layer's MLP elsewhere
            picked = (states + attended)[0, wanted]
            if adapters:
                adapters.pick(wanted)
            return picked + last.mlp(last.post_attention_layernorm(picked))


def _present(
    prompts: Tensor, owner: Sequence[int] | None
) -> tuple[Tensor, Sequence[int] | None, Tensor | None]:
    """The sets of the clients that have a row, these clients, and each row's place among them."""
    if owner is None:
        return prompts, None, None
    present, inverse = np.unique(owner, return_inverse=True)
    if len(present) < len(prompts):
        prompts = prompts[torch.from_numpy(present).to(prompts.device)]
    return prompts, present.tolist(), torch.from_numpy(inverse).to(prompts.device)


def _unit(states: Tensor) -> Tensor:
    """Each state divided by its norm, float32."""
    return F.normalize(states.float(), dim=-1)
