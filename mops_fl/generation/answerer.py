"""Asking a model: questions in the template that it was trained with, and answers as they come."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.config import BackboneConfig
from mops_fl.data.examples import Example
from mops_fl.data.tokens import question_ids
from mops_fl.errors import DataError
from mops_fl.generation.trained import Trained
from mops_fl.models.adapted import with_adapters, with_prompts
from mops_fl.models.backbone import load_frozen
from mops_fl.models.causal_lm import MopsForCausalLM
from mops_fl.wire.records import PROMPTS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


DECODED = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
"""How answers become text."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 for the most likely token."""
    top_p: float = 1.0
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """For `generate` of transformers."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        if self.temperature:
            chosen |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return chosen


class Answerer:
    """One round of one run, ready to answer."""

    def __init__(self, trained: Trained) -> None:
        """Nothing is loaded before it is asked for. Runs on one base model share it in memory."""
        self.trained = trained

    @cached_property
    def model(self) -> "LlamaForCausalLM":
        """The LLaMA, with prompts and gate where there are some."""
        trained = self.trained
        layer, llama = trained.layer, _frozen(trained.config.backbone)
        if PROMPTS not in trained.tensors:
            return llama
        return with_prompts(llama, trained.config.prompts, layer, trained.tensors)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base model's."""
        return load_tokenizer(self.trained.config.backbone)

    def ids(self, question: Example) -> list[int]:
        """Token ids of a question, as in training.

        Raises:
            DataError: with one token of an answer it is longer than the model's context.
        """
        ids = question_ids(question, self.tokenizer)
        if len(ids) >= self.context:
            raise DataError(
                f"the question has {len(ids)} tokens, but the model has room for "
                f"{self.context - 1} beside the prompts and an answer: ask a shorter one"
            )
        return ids

    @property
    def context(self) -> int:
        """Tokens of a question and its answer, at most."""
        if isinstance(self.model, MopsForCausalLM):
            return self.model.model.context
        return self.model.config.max_position_embeddings

    def gate(self, ids: Sequence[int]) -> list[float] | None:
        """Weights of the experts for a question, which sum to 1; None without a gate."""
        if not isinstance(self.model, MopsForCausalLM):
            return None
        with torch.no_grad():
            weights = self.model.model.gate_weights(torch.tensor([ids], device=self.model.device))
        return None if weights is None else (weights / weights.sum()).flatten().tolist()

    def answer(
        self, ids: Sequence[int], sampling: Sampling, streamer: "BaseStreamer | None" = None
    ) -> str:
        """The answer to a question.

        Args:
            ids: of the question.
            sampling: how tokens are chosen.
            streamer: gets tokens as they come.
        """
        (text,) = self.answers([ids], sampling, streamer)
        return text

    def answers(
        self,
        questions: Sequence[Sequence[int]],
        sampling: Sampling,
        streamer: "BaseStreamer | None" = None,
    ) -> list[str]:
        """The answers to several questions, made together.

        Args:
            questions: token ids of each.
            sampling: how tokens are chosen; with a temperature, also by the questions beside.
            streamer: gets tokens as they come, of a single question.
        """
        model: Any = self.model
        end = self.tokenizer.eos_token_id
        longest = max(map(len, questions))
        padding = [longest - len(ids) for ids in questions]
        rows = [[end] * n + [*ids] for n, ids in zip(padding, questions, strict=True)]
        ids = torch.tensor(rows, device=model.device)
        mask = torch.arange(longest)[None] >= torch.tensor(padding)[:, None]
        torch.manual_seed(sampling.seed)
        options = sampling.options
        options["max_new_tokens"] = min(sampling.max_new_tokens, self.context - longest)
        with self._adapted(), torch.no_grad():
            made = model.generate(
                ids,
                attention_mask=mask.long().to(model.device),
                eos_token_id=end,
                pad_token_id=end,
                streamer=streamer,
                **options,
            )
        return self.tokenizer.batch_decode(made[:, longest:], **DECODED)

    @contextlib.contextmanager
    def _adapted(self) -> Iterator[None]:
        trained = self.trained
        own = (trained.method, trained.config.adapters, trained.tensors)
        with with_adapters(self.model, *own):
            yield


@lru_cache(maxsize=1)
def _frozen(config: BackboneConfig) -> "LlamaForCausalLM":
    return load_frozen(config)
