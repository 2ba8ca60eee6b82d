"""A LLaMA with its trained prompts and gate as one model of transformers, for `generate`.

The prompts' keys and values come before those of the tokens in every layer's cache, P¹'s below
L_int and the trained ones from there on. A token that comes later sees them as it sees the tokens
before it, so that generation costs what it costs with as many more tokens in the cache. Only the
bias ``log g`` depends on the question: it is found when the question is read, and stays for the
answer.

The forward pass is that of `mops_fl.models.mixture`, which is made for training: many clients, no
cache, states below L_int kept.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel

from mops_fl.models.attention import KeyValues


class MopsConfig(LlamaConfig):
    """A LLaMA's configuration, and how prompts and gate act on it; the keys are a run's."""

    model_type = "mops"

    num_prompts: int = 0
    """K, trained vectors before the tokens from `injection_layer` on."""
    num_pretrained: int = 0
    """K₁, vectors of P¹ before the tokens below `injection_layer`."""
    injection_layer: int = 0
    """L_int."""
    injection: str = "replace"
    experts: int = 0
    """E; 0 without a gate."""
    gate_hidden: int = 64
    gate_mode: str = "attention"
    gate_scale: str = "softmax"
    gate_top: int = 0
    expert_names: list[str] | None = None
    """What each expert is called."""
    quantisation: str = ""
    """``int8``, ``nf4`` or empty: what the linear layers are turned into after they are read."""


class Gate(nn.Module):
    """``g = softmax(W₂ relu(W₁ avg_emb))``, float32 (paper, "The gating function")."""

    def __init__(self, config: MopsConfig) -> None:
        """Zeros, until weights are loaded."""
        super().__init__()
        zeros = torch.zeros(config.gate_hidden, config.hidden_size, dtype=torch.float32)
        self.hidden = nn.Parameter(zeros)
        zeros = torch.zeros(config.experts, config.gate_hidden, dtype=torch.float32)
        self.output = nn.Parameter(zeros)

    def forward(self, features: Tensor) -> Tensor:
        """``log g``, [B, E], of ``avg_emb`` [B, d]."""
        weights = F.linear(F.relu(F.linear(features, self.hidden)), self.output)
        return weights.log_softmax(-1)


class PromptedLayer(DynamicLayer):
    """The keys and values of one layer: those of V vectors, then those of the tokens.

    Its length is that of the tokens, and the vectors outlast every `crop`.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> None:
        """Begin without tokens.

        Args:
            keys: [B, key-value heads, V, head size].
            values: like `keys`.
            bias: [B, V] on the attention to the vectors; None for none.
        """
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.bias = keys, values, bias
        self.vectors = keys.shape[-2]

    def get_seq_length(self) -> int:
        """Tokens."""
        return self.keys.shape[-2] - self.vectors

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, and its bias."""
        self.batch_select_indices(
            torch.arange(len(self.keys), device=self.keys.device).repeat_interleave(repeats)
        )

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows."""
        self.keys, self.values = self.keys[indices], self.values[indices]
        if self.bias is not None:
            self.bias = self.bias[indices]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of the beams that go on."""
        self.batch_select_indices(beam_idx.to(self.keys.device))


@dataclass(frozen=True)
class _Constants:
    """What is the same for every question."""

    key: tuple
    """Of what it was made from."""
    states: Tensor
    """[1, K₁, d] of P¹ at L_int."""
    prefix: KeyValues
    suffix: KeyValues = field(default_factory=KeyValues)
    """Empty where each row has vectors of its own."""


class MopsModel(LlamaModel):
    """The layers, with vectors before the tokens."""

    config: MopsConfig

    def __init__(self, config: MopsConfig) -> None:
        """Prompts and gate are zeros, until weights are loaded."""
        super().__init__(config)
        size = config.hidden_size
        self.prompts = nn.Parameter(torch.zeros(config.num_prompts, size))
        self.pretrained = nn.Parameter(torch.zeros(config.num_pretrained, size))
        self.gate = Gate(config) if config.experts else None
        self._constants: _Constants | None = None

    @property
    def _first(self) -> int:
        return self.config.injection_layer

    @property
    def vectors(self) -> int:
        """Positions before the tokens from L_int on, whether or not an example sees them all."""
        kept = self.config.num_pretrained if self.config.injection == "append" else 0
        return kept + self.config.num_prompts

    @property
    def context(self) -> int:
        """Tokens that there are positions for beside the vectors, in every layer."""
        before = self.config.num_pretrained if self._first else 0
        return self.config.max_position_embeddings - max(self.vectors, before)

    @property
    def _top(self) -> int:
        top = self.config.gate_top
        return 0 if self.gate is None or top == self.config.experts else top

    @property
    def _set_a_row(self) -> bool:
        """Whether every row has vectors of its own."""
        hidden = self.gate is not None and self.config.gate_mode == "hidden"
        return hidden or bool(self._top)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        question_mask: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """As a LLaMA's, of the tokens alone.

        Args:
            input_ids: [B, T].
            attention_mask: [B, tokens so far and T], 0 for padding, on either side.
            position_ids: [B, T], of the tokens without any vectors.
            past_key_values: of the tokens so far; an empty one for the first.
            inputs_embeds: [B, T, d] in place of `input_ids`.
            use_cache: whether to give the cache back.
            question_mask: [B, at most T], 1 for the tokens that the gate may see, where there is no
                past; all by default.

        Raises:
            ValueError: the cache is of a kind that cannot hold the vectors.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length, count = states.shape[1], self._first
        cache = _usable(past_key_values)
        seen = cache.get_seq_length()
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if position_ids is None:
            position_ids = _positions(attention_mask, seen, length, states.device)
        constants = self._made()
        if not cache.layers:
            cache.layers += [
                _layer(constants.prefix.of(index), len(states)) for index in range(count)
            ]
        layers = range(count)
        states = self._through(
            layers, states, position_ids + self.config.num_pretrained, cache, attention_mask
        )
        if len(cache.layers) == count:
            mask = _question(attention_mask, question_mask, states)
            cache.layers += self._read(states, mask, constants)
        layers = range(count, self.config.num_hidden_layers)
        positions = position_ids + self.vectors
        states = self._through(layers, states, positions, cache, attention_mask)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(states), past_key_values=cache if use_cache else None
        )

    def gate_weights(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor | None:
        """Weights of the experts for questions [B, T]: [B, E] as ``gate-scale`` has them.

        None without a gate.
        """
        if self.gate is None:
            return None
        constants, rows = self._made(), len(input_ids)
        cache = DynamicCache()
        cache.layers = [_layer(constants.prefix.of(index), rows) for index in range(self._first)]
        positions = _positions(attention_mask, 0, input_ids.shape[1], input_ids.device)
        positions = positions + self.config.num_pretrained
        embedded = self.embed_tokens(input_ids)
        states = self._through(range(self._first), embedded, positions, cache, attention_mask)
        mask = _question(attention_mask, None, states)
        return self._log_gate(states, mask, constants).exp()

    def _through(
        self,
        layers: range,
        states: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """States of T tokens, [B, T, d], through some layers."""
        if not layers:
            return states
        first = cache.layers[layers[0]]
        assert isinstance(first, PromptedLayer)
        mask = _mask(attention_mask, states, first)
        rotary = self.rotary_emb(states, positions)
        for index in layers:
            states = self.layers[index](
                states, attention_mask=mask, position_embeddings=rotary, past_key_values=cache
            )
        return states

    def _made(self) -> _Constants:
        """The constants: kept while no gradient is wanted and no parameter is changed."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in (self.prompts, *self._gate())):
            return self._make(())
        tensors = (self.prompts, self.pretrained, self.embed_tokens.weight)
        key = (
            *((t.data_ptr(), t.dtype, t.device) for t in tensors),
            sum(parameter._version for parameter in self.parameters()),
        )
        if self._constants is None or self._constants.key != key:
            with torch.no_grad():
                self._constants = self._make(key)
        return self._constants

    def _gate(self) -> list[nn.Parameter]:
        return [] if self.gate is None else [*self.gate.parameters()]

    def _make(self, key: tuple) -> _Constants:
        prefix, dtype = KeyValues(), self.embed_tokens.weight.dtype
        states = self._vectors(self.pretrained.to(dtype)[None], range(self._first), prefix)
        made = _Constants(key, states, prefix)
        if not self._set_a_row:
            before = states if self.config.injection == "append" else states[:, :0]
            vectors = torch.cat((before, self.prompts.to(dtype)[None]), 1)
            self._vectors(vectors, self._suffix, made.suffix)
        return made

    @property
    def _suffix(self) -> range:
        return range(self._first, self.config.num_hidden_layers)

    def _vectors(
        self,
        states: Tensor,
        layers: range,
        recorded: KeyValues,
        positions: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Vectors [P, V, d] through some layers, causal among themselves.

        Args:
            states: input of the first layer.
            layers: which.
            recorded: gets their keys and values.
            positions: [P, V]; from 0 on by default.
            scale: [P, V, 1], factor of every layer's input; None for 1.
        """
        if not states.shape[1]:
            for index in layers:
                recorded.update(*_empty(self.layers[index].self_attn, states), index)
            return states
        if positions is None:
            positions = torch.arange(states.shape[1], device=states.device)[None]
        mask = _causal(states, states.shape[1])[:, None]
        rotary = self.rotary_emb(states, positions)
        for index in layers:
            states = self.layers[index](
                states if scale is None else states * scale,
                attention_mask=mask,
                position_embeddings=rotary,
                past_key_values=recorded,
            )
        return states

    def _log_gate(self, states: Tensor, question: Tensor, constants: _Constants) -> Tensor:
        """``log g`` [B, E] as ``gate-scale`` has it, for states at L_int [B, T, d].

        Args:
            states: of questions, and of what `question` leaves out.
            question: [B, T], 1 for the tokens of the question.
            constants: with the states of P¹.
        """
        assert self.gate is not None
        before = F.normalize(constants.states.float(), dim=-1).sum(1)
        summed = (F.normalize(states.float(), dim=-1) * question[..., None]).sum(1)
        counts = question.sum(1, keepdim=True) + constants.states.shape[1]
        log_gate = self.gate((before + summed) / counts)
        if self.config.gate_scale == "mean-one":
            log_gate = log_gate + torch.tensor(float(self.config.experts)).log()
        return log_gate

    def _read(self, states: Tensor, question: Tensor, constants: _Constants) -> list[PromptedLayer]:
        """The layers of the cache from L_int on for questions whose states there are known."""
        rows, bias, recorded = len(states), None, constants.suffix
        if self.gate is not None:
            log_gate = self._log_gate(states, question, constants)
            if self._set_a_row:
                bias, recorded = self._own_vectors(log_gate, constants)
            else:
                bias = self._of_vectors(log_gate)
                bias = F.pad(bias, (self.vectors - bias.shape[-1], 0))
        return [_layer(recorded.of(index), rows, bias) for index in self._suffix]

    def _of_vectors(self, log_gate: Tensor) -> Tensor:
        """Each expert's weight for each of its vectors: [B, E] to [B, E · m]."""
        return log_gate.repeat_interleave(self.config.num_prompts // self.config.experts, -1)

    def _own_vectors(
        self, log_gate: Tensor, constants: _Constants
    ) -> tuple[Tensor | None, KeyValues]:
        """Bias, and keys and values, of the vectors that rows have of their own."""
        config, rows = self.config, len(log_gate)
        dtype, device = constants.states.dtype, log_gate.device
        vectors = self.prompts.to(dtype).expand(rows, -1, -1)
        positions = torch.arange(config.num_prompts, device=device).expand(rows, -1)
        if self._top:
            best = log_gate.topk(self._top).indices.sort(-1).values
            log_gate = log_gate.gather(-1, best)
            each = config.num_prompts // config.experts
            positions = (best[..., None] * each + torch.arange(each, device=device)).flatten(1)
            vectors = self.prompts.to(dtype)[positions]
        before = constants.states if config.injection == "append" else constants.states[:, :0]
        count = before.shape[1]
        vectors = torch.cat((before.expand(rows, -1, -1), vectors), 1)
        first = torch.arange(count, device=device).expand(rows, -1)
        positions = torch.cat((first, positions + count), 1)
        bias, scale = F.pad(self._of_vectors(log_gate), (count, 0)), None
        if config.gate_mode == "hidden":
            scale = bias.exp().to(dtype)[..., None]
        recorded = KeyValues()
        self._vectors(vectors, self._suffix, recorded, positions, scale)
        return (None if scale is not None else bias), recorded


class MopsForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` with trained prompts and gate: `generate`, `pipeline`, padded batches.

    With `labels` the gate sees what has none, as in training: the question. With a cache it sees
    what is read first, whole, and stays as it is from then on.
    """

    config_class = MopsConfig
    config: MopsConfig
    # patterns that are searched for in names: "gate" alone is in "gate_proj", too
    _keep_in_fp32_modules_strict = {"gate.hidden", "gate.output"}  # noqa: RUF012 - as its base has it

    def __init__(self, config: MopsConfig) -> None:
        """As `LlamaForCausalLM`."""
        LlamaPreTrainedModel.__init__(self, config)
        self.model = MopsModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def around(cls, llama: LlamaForCausalLM, **keys: Any) -> Self:
        """A model that shares the modules of a LLaMA, with prompts and gate of zeros.

        Args:
            llama: becomes a part of it.
            **keys: of `MopsConfig`.
        """
        config = MopsConfig(**{**llama.config.to_dict(), **keys, "model_type": "mops"})
        with torch.device("meta"):
            made = cls(config)
        made.config._attn_implementation = llama.config._attn_implementation
        own = made.model
        for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
            setattr(own, name, getattr(llama.model, name))
        made.lm_head = llama.lm_head
        for layer in own.layers:
            layer.self_attn.config = made.config
        weight = own.embed_tokens.weight
        for module, type_ in ((own, weight.dtype), (own.gate, torch.float32)):
            for name, parameter in () if module is None else module.named_parameters(recurse=False):
                zeros = torch.zeros(parameter.shape, dtype=type_, device=weight.device)
                setattr(module, name, nn.Parameter(zeros))
        made.generation_config = llama.generation_config
        return made.eval()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As transformers' own; a model of a quantised run is quantised once it is read."""
        made = super().from_pretrained(*arguments, **options)
        model = made[0] if isinstance(made, tuple) else made
        if model.config.quantisation:
            from mops_fl.compression.quantise import quantise

            quantise(model, model.config.quantisation, model.device)
        return made

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        question_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `LlamaForCausalLM`, and `MopsModel`; `labels` also say what the question is."""
        if labels is not None and question_mask is None:
            question_mask = (labels == -100).long()
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            question_mask=question_mask,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As transformers' own.

        Raises:
            ValueError: there is no cache: question and answer could not be told apart.
        """
        if not kwargs.get("use_cache", True) and kwargs.get("question_mask") is None:
            raise ValueError("use_cache=False needs a question_mask: say which tokens are asked")
        parent: Any = super()
        return parent.prepare_inputs_for_generation(input_ids, **kwargs)


def _usable(cache: DynamicCache | None) -> DynamicCache:
    """A cache that holds vectors, or that will.

    Raises:
        ValueError: it is of another kind.
    """
    if cache is None:
        return DynamicCache()
    if all(isinstance(layer, PromptedLayer) for layer in cache.layers):
        return cache
    if type(cache) is DynamicCache and not cache.get_seq_length() and not cache.offloading:
        cache.layers = []
        return cache
    raise ValueError(
        f"a {type(cache).__name__} that cannot hold prompts: leave cache_implementation unset, or "
        "give an empty DynamicCache"
    )


def _layer(recorded: tuple[Tensor, Tensor], rows: int, bias: Tensor | None = None) -> PromptedLayer:
    keys, values = (part.expand(rows, -1, -1, -1) for part in recorded)
    return PromptedLayer(keys, values, bias)


def _empty(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of no vectors."""
    groups = attention.config.num_key_value_heads
    none = states.new_zeros(len(states), groups, 0, attention.head_dim)
    return none, none


def _positions(
    attention_mask: Tensor | None, seen: int, length: int, device: torch.device
) -> Tensor:
    """[B or 1, T], of the tokens that are no padding."""
    if attention_mask is None:
        return torch.arange(seen, seen + length, device=device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, seen : seen + length]


def _question(
    attention_mask: Tensor | None, question_mask: Tensor | None, states: Tensor
) -> Tensor:
    """[B, T], 1 for the tokens that the gate sees."""
    shown = states.new_ones(states.shape[:2], dtype=torch.float32)
    if attention_mask is not None:
        shown = shown * attention_mask[:, : shown.shape[1]]
    if question_mask is not None:
        shown = shown * F.pad(question_mask, (0, shown.shape[1] - question_mask.shape[1]))
    return shown


def _causal(states: Tensor, span: int) -> Tensor:
    """[1, T, S]: 0 where the last T of S positions may look, very low elsewhere.

    Float32 beside half-precision states on the CPU, whose kernel takes it: ``log g`` keeps its
    bits.
    """
    length, device = states.shape[1], states.device
    half = states.element_size() < 4
    dtype = torch.float32 if half and device.type == "cpu" else states.dtype
    hidden = torch.ones(length, span, dtype=torch.bool, device=device).triu(span - length + 1)
    zeros = torch.zeros(1, length, span, dtype=dtype, device=device)
    return zeros.masked_fill(hidden, torch.finfo(dtype).min)


def _mask(attention_mask: Tensor | None, states: Tensor, layer: PromptedLayer) -> Tensor | None:
    """[B or 1, 1, T, V + S] to be added to the logits of T tokens, None for nothing to add.

    Args:
        attention_mask: [B, S], 0 for padding; None without any.
        states: [B, T, d] of the last T of S tokens.
        layer: with V vectors, and all S - T tokens before these.
    """
    length = states.shape[1]
    span = layer.get_seq_length() + length
    padded = attention_mask is not None and not bool(attention_mask[:, :span].all())
    if length == 1 and layer.bias is None and not padded:
        return None
    mask = _causal(states, span)
    if padded:
        assert attention_mask is not None
        hidden = attention_mask[:, None, :span] == 0
        mask = mask.expand(len(states), -1, -1)
        mask = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
    bias = mask.new_zeros(1, layer.vectors) if layer.bias is None else layer.bias.to(mask.dtype)
    rows = max(len(mask), len(bias))
    before = bias[:, None].expand(rows, length, -1)
    return torch.cat((before, mask.expand(rows, -1, -1)), -1)[:, None]


AutoConfig.register(MopsConfig.model_type, MopsConfig)
AutoModelForCausalLM.register(MopsConfig, MopsForCausalLM)
