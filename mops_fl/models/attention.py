"""Attention over prompt vectors and tokens, plugged into transformers' own LLaMA layers.

transformers calls a registered function with queries, keys and values, and asks whatever was given
as `past_key_values` to `update` them; these two seams are all that the mixture needs.

On the CPU scores are explicit; on CUDA they stay inside PyTorch's fused kernel, which takes no
bias with a gradient, so ``log g`` travels as extra dimensions of queries and keys. Measured on one
core in bfloat16, forward and backward of a layer with 70 prompts: explicit 1.0 ms for 60 tokens and
4.9 ms for 200, the fused kernel's CPU variant 3.2 ms and 10.5 ms (float32: 1.9 and 8.0, 2.7 and
10.2). The variant for CUDA has not run on a GPU yet.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

NAME = "mops_fl_prompt"


class KeyValues:
    """Keys and values of one set of vectors for a range of layers, as the layers produce them."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Record one layer's keys and values, each [1, key-value heads, K, head size]."""
        self._layers[layer] = (keys, values)
        return keys, values

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """What was recorded for one layer."""
        return self._layers[layer]


class Packing:
    """P sets of K prompt vectors, then B rows of tokens, as one sequence of N without padding.

    The layers' matrix products run over the whole sequence: they are as large as can be, and
    spend nothing on padding. Attention alone takes the sequence apart.
    """

    def __init__(
        self,
        sets: int,
        prompts: int,
        lengths: Sequence[int],
        owner: Tensor | None,
        device: torch.device,
        recorded: KeyValues | None = None,
        *,
        positions: Tensor | None = None,
        first: int | None = None,
    ) -> None:
        """Lay out the sequence.

        Args:
            sets: P.
            prompts: K, vectors of a set.
            lengths: tokens of each of the B rows.
            owner: [B], the set that each row sees; None for P = 1, or P = B in the same order.
            device: where the indices live.
            recorded: the keys and values of K vectors that all rows see, instead of sets of them
                in the sequence (P = 0).
            positions: [P, K], those of the vectors; 0 to K - 1 by default.
            first: position of each row's first token; K by default.
        """
        self._sets, self._prompts, self._owner = sets, prompts, owner
        self._rows, self._longest, self._recorded = len(lengths), max(lengths), recorded
        counts, columns = torch.tensor(lengths)[:, None], torch.arange(self._longest)
        valid = columns < counts
        places = valid.flatten().nonzero()[:, 0]
        self._places = places.to(device) if len(places) < valid.numel() else None
        vectors = torch.arange(prompts).repeat(sets) if positions is None else positions.flatten()
        tokens = ((prompts if first is None else first) + columns.expand_as(valid))[valid]
        self.positions = torch.cat((vectors.to(device), tokens.to(device)))[None]
        """[1, N], the RoPE position of each."""

    @property
    def first_token(self) -> int:
        """P · K: where the tokens begin in the sequence."""
        return self._sets * self._prompts

    def unpack(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """[1, heads, N, size] to [P, heads, K, size] and padded [B, heads, T, size]."""
        _, heads, _, size = part.shape
        flat = part[0].transpose(0, 1)
        prompts, tokens = flat[: self.first_token], flat[self.first_token :]
        if self._places is not None:
            tokens = _Placed.apply(tokens, self._places, self._rows * self._longest)
        prompts = prompts.view(self._sets, self._prompts, heads, size)
        tokens = tokens.view(self._rows, self._longest, heads, size)
        return prompts.transpose(1, 2), tokens.transpose(1, 2)

    def pack(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """The inverse: [P, K, …] and padded [B, T, …] to [1, N, …]."""
        tokens = tokens.flatten(0, 1)
        if self._places is not None:
            tokens = _Picked.apply(tokens, self._places)
        return sequence(prompts, tokens)

    def seen_by_rows(
        self, module: Any, prompts: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of every row: those of its set before its own, [B, groups, S, size]."""
        if self._recorded is not None:
            prompts = self._recorded.of(module.layer_idx)
        if self._owner is not None:
            prompts = (prompts[0][self._owner], prompts[1][self._owner])
        keys, values = (
            torch.cat((before.expand(self._rows, -1, -1, -1), own), 2)
            for before, own in zip(prompts, tokens, strict=True)
        )
        return keys, values


def sequence(prompts: Tensor, tokens: Tensor) -> Tensor:
    """[P, K, …] and the tokens of all rows one after the other [M, …] to [1, P · K + M, …]."""
    return torch.cat((prompts.flatten(0, 1), tokens))[None]


class _Placed(torch.autograd.Function):
    """Rows put at distinct places among zeros; the gradient is picked, where indexing adds."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


class _Picked(torch.autograd.Function):
    """Rows at distinct places; the inverse of `_Placed`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        zeros = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return zeros.index_copy_(0, places, gradient), None


def prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    prompt_bias: Tensor | None = None,
    packing: Packing | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention of the last T positions, with a bias on the first K keys.

    The T queries are the last of S = P + T positions. `prompt_bias` [B, K] is added to the logits
    of K keys, the last K of the P before the tokens: ``log g`` scales the attention that they get,
    and the softmax renormalises it. Rows are padded on the right, so causality hides the padding.

    Args:
        module: the layer's attention; its index is what `Packing` may ask for.
        query: [B, heads, T, head size].
        key: [B, key-value heads, S, head size].
        value: like `key`.
        attention_mask: must be None.
        scaling: factor of the logits.
        dropout: must be 0; a frozen backbone has none.
        prompt_bias: [B, K], float32.
        packing: where query, key and value are [1, …, N, head size] of prompt vectors and tokens:
            vectors attend to their set, tokens with the bias to theirs and to their row.

    Returns:
        [B, T, heads, head size] (packed: [1, N, heads, head size]), and no weights.
    """
    if attention_mask is not None or dropout:
        raise ValueError("prompt_attention builds its own causal mask and has no dropout")
    attend = _fused if query.is_cuda else _explicit
    if packing is None:
        return attend(query, key, value, scaling, prompt_bias).transpose(1, 2), None
    query, tokens_query = packing.unpack(query)
    key, tokens_key = packing.unpack(key)
    value, tokens_value = packing.unpack(value)
    keys, values = packing.seen_by_rows(module, (key, value), (tokens_key, tokens_value))
    among_tokens = attend(tokens_query, keys, values, scaling, prompt_bias)
    among_prompts = attend(query, key, value, scaling, None) if query.numel() else query
    return packing.pack(among_prompts.transpose(1, 2), among_tokens.transpose(1, 2)), None


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, prompt_bias: Tensor | None
) -> Tensor:
    """[B, heads, T, head size]; scores are made one by one."""
    batch, heads, length, size = query.shape
    groups, span = key.shape[1], key.shape[2]
    bias = _causal_bias(length, span, query.device)
    if prompt_bias is not None:
        # [B, K] -> [B, 1, 1, 1, S]
        bias = bias + _over_keys(prompt_bias, length, span)[:, None, None, None]
    # the heads that share keys side by side: [B, groups, heads/groups * T, head size]
    query = query.reshape(batch, groups, heads // groups * length, size)
    scores = (query @ key.transpose(-1, -2)).view(batch, groups, -1, length, span)
    # [B, groups, heads/groups, T, S], float32
    weights = torch.add(bias, scores, alpha=scaling).softmax(-1)
    mixed = weights.to(value.dtype).view(batch, groups, -1, span) @ value
    return mixed.view(batch, heads, length, size)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, prompt_bias: Tensor | None
) -> Tensor:
    """[B, heads, T, head size]; scores never leave PyTorch's fused kernel.

    A key's bias is the product of constants in extra dimensions of the query and terms in those of
    the key. A half-precision number holds 8 or 11 bits of it, so three terms hold it exactly.
    """
    heads, length, size = query.shape[1:]
    groups, span = key.shape[1], key.shape[2]
    if prompt_bias is not None:
        # a power of two near 1 / scaling, so that it is exact in every type
        constant = 2.0 ** round(-math.log2(scaling))
        terms = _terms(_over_keys(prompt_bias, length, span) / (scaling * constant), key.dtype)
        query = torch.cat((query, query.new_full((*query.shape[:3], 3), constant)), -1)
        key = torch.cat((key, terms[:, None].expand(-1, groups, -1, -1)), -1)
        # the kernel wants one head size for all three, a multiple of 8
        padding = (0, -query.shape[-1] % 8)
        query, key = F.pad(query, padding), F.pad(key, padding)
        value = F.pad(value, (0, query.shape[-1] - size))
    if groups != heads:
        key, value = (part.repeat_interleave(heads // groups, 1) for part in (key, value))
    mask = causal_lower_right(length, span)
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scaling)[..., :size]


def _terms(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, S] float32 to [B, S, 3] of `dtype` with the same sum; the first carries the gradient."""
    first = bias.to(dtype)
    rest = (bias - first).detach()
    second = rest.to(dtype)
    return torch.stack((first, second, (rest - second).to(dtype)), -1)


def _over_keys(prompt_bias: Tensor, length: int, span: int) -> Tensor:
    """[B, K] to [B, S]: zeros for the keys that have no bias."""
    return F.pad(prompt_bias, (span - length - prompt_bias.shape[-1], length))


@lru_cache(maxsize=8)
def _causal_bias(length: int, span: int, device: torch.device) -> Tensor:
    """[T, S]: 0 where the last T of S positions may look, minus infinity elsewhere."""
    hidden = torch.ones(length, span, dtype=torch.bool, device=device).triu(span - length + 1)
    return torch.zeros(length, span, device=device).masked_fill(hidden, float("-inf"))


AttentionInterface.register(NAME, prompt_attention)
