"""Attention over prompt vectors and tokens, plugged into transformers' own LLaMA layers.

transformers calls a registered function with queries, keys and values, and asks whatever was given
as `past_key_values` to `update` them; these two seams are all that the mixture needs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "mops_fl_prompt"


class KeyValues:
    """Keys and values of prompt vectors for a range of layers, as the layers produce them."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Record one layer's keys and values, each [P, key-value heads, K, head size]."""
        self._layers[layer] = (keys, values)
        return keys, values

    def before(self, owner: Tensor | None, batch: int) -> "_Prepend":
        """What to give to layers that run tokens: row b sees the prompts of P-row ``owner[b]``.

        Without `owner`, every row sees the one set of prompts there is (P = 1), or row b sees
        set b (P = batch).
        """
        return _Prepend(self._layers, owner, batch)


class _Prepend:
    """Puts recorded keys and values before those of the tokens."""

    def __init__(
        self, layers: dict[int, tuple[Tensor, Tensor]], owner: Tensor | None, batch: int
    ) -> None:
        self._layers, self._owner, self._batch = layers, owner, batch

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            return keys, values
        prompt_keys, prompt_values = (self._rows(part) for part in self._layers[layer])
        return torch.cat((prompt_keys, keys), -2), torch.cat((prompt_values, values), -2)

    def _rows(self, part: Tensor) -> Tensor:
        if self._owner is not None:
            return part[self._owner]
        return part.expand(self._batch, -1, -1, -1)


def prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    prompt_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention of the last T positions, with a bias on the first K keys.

    The T queries are the last of S = P + T positions. `prompt_bias` [B, K] is added to the logits
    of K keys, the last K of the P before the tokens: ``log g`` scales the attention that they get,
    and the softmax renormalises it. Rows are padded on the right, so causality hides the padding.

    Args:
        module: the layer's attention; not used.
        query: [B, heads, T, head size].
        key: [B, key-value heads, S, head size].
        value: like `key`.
        attention_mask: must be None.
        scaling: factor of the logits.
        dropout: must be 0; a frozen backbone has none.
        prompt_bias: [B, K], float32.

    Returns:
        [B, T, heads, head size], and no weights.
    """
    if attention_mask is not None or dropout:
        raise ValueError("prompt_attention builds its own causal mask and has no dropout")
    batch, heads, length, size = query.shape
    groups, span = key.shape[1], key.shape[2]
    bias = _causal_bias(length, span, query.device)
    if prompt_bias is not None:
        first = span - length - prompt_bias.shape[-1]
        # [B, K] -> [B, 1, 1, 1, S]
        bias = bias + F.pad(prompt_bias, (first, length))[:, None, None, None]
    # the heads that share keys side by side: [B, groups, heads/groups * T, head size]
    query = query.reshape(batch, groups, heads // groups * length, size)
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    # [B, groups, heads/groups, T, S]
    weights = (scores.view(batch, groups, -1, length, span) + bias).softmax(-1)
    mixed = weights.to(value.dtype).view(batch, groups, -1, span) @ value
    return mixed.view(batch, heads, length, size).transpose(1, 2), None


def _causal_bias(length: int, span: int, device: torch.device) -> Tensor:
    """[T, S]: 0 where the last T of S positions may look, minus infinity elsewhere."""
    hidden = torch.ones(length, span, dtype=torch.bool, device=device).triu(span - length + 1)
    return torch.zeros(length, span, device=device).masked_fill(hidden, float("-inf"))


AttentionInterface.register(NAME, prompt_attention)
