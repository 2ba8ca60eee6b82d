"""Asking a model: questions in the template that it was trained with, and answers as they come."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from mops_fl.activity import OnStep
from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.config import BackboneConfig
from mops_fl.data.examples import Example
from mops_fl.data.tokens import question_ids
from mops_fl.errors import DataError
from mops_fl.generation.trained import Trained
from mops_fl.models.adapted import generates_plainly, with_adapters, with_prompts
from mops_fl.models.backbone import load_frozen
from mops_fl.models.causal_lm import MopsForCausalLM
from mops_fl.wire.records import PROMPTS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


DECODED = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
"""How answers become text."""

TOGETHER = 16
"""Questions that are answered at a time."""


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
            # all tokens, where transformers would take the 50 likeliest
            chosen |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
            chosen["top_k"] = 0
        return chosen


class Answering(ABC):
    """A model that was trained, with its tokenizer, ready to answer."""

    @property
    @abstractmethod
    def model(self) -> "LlamaForCausalLM":
        """What generates."""

    @property
    @abstractmethod
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base model's."""

    @property
    @abstractmethod
    def experts(self) -> list[str]:
        """What each expert is called; empty without a gate."""

    def adapted(self) -> contextlib.AbstractContextManager[None]:
        """Around what the model computes: whatever it lacks by itself."""
        return contextlib.nullcontext()

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
        end, longest = self.tokenizer.eos_token_id, max(map(len, questions))
        ids, mask = self._padded(questions)
        torch.manual_seed(sampling.seed)
        options = sampling.options
        options["max_new_tokens"] = min(sampling.max_new_tokens, self.context - longest)
        with self.adapted(), torch.no_grad():
            made = model.generate(
                ids,
                attention_mask=mask,
                eos_token_id=end,
                pad_token_id=end,
                streamer=streamer,
                **options,
            )
        return self.tokenizer.batch_decode(made[:, longest:], **DECODED)

    def in_batches(
        self,
        questions: Sequence[Sequence[int]],
        sampling: Sampling,
        on_step: OnStep = lambda _done, _of: None,
    ) -> list[str]:
        """The answers to any number of questions, `TOGETHER` of similar length at a time.

        Without a temperature each is what it is by itself, but for rounding: in half precision, of
        two tokens that are nearly as likely, a batch may choose the other.

        Args:
            questions: token ids of each.
            sampling: how tokens are chosen.
            on_step: called after every batch with the number of questions answered, and of all.
        """
        found, done = [""] * len(questions), 0
        room = self.context - sampling.max_new_tokens
        for places in batches([*map(len, questions)], room):
            texts = self.answers([questions[place] for place in places], sampling)
            for place, text in zip(places, texts, strict=True):
                found[place] = text
            done += len(places)
            on_step(done, len(questions))
        return found

    def loglikelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each answer after its question, in nats, all in one forward pass; and
        whether each of its tokens is the most likely one.

        Args:
            pairs: token ids of a question, which the gate sees, and of an answer; neither is empty.
        """
        model: Any = self.model
        ids, mask = self._padded([[*question, *answer[:-1]] for question, answer in pairs])
        options: dict[str, Any] = {}
        if isinstance(model, MopsForCausalLM):
            asked = [ids.shape[1] - len(answer) + 1 for _, answer in pairs]
            places = torch.arange(ids.shape[1], device=ids.device)
            options["question_mask"] = places < torch.tensor(asked, device=ids.device)[:, None]
        with self.adapted(), torch.no_grad():
            logits = model(
                ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                logits_to_keep=max(len(answer) for _, answer in pairs),
                use_cache=False,
                **options,
            ).logits
        found = []
        for row, (_, answer) in zip(logits, pairs, strict=True):
            # [A, vocabulary], what predicts each token of the answer
            scores = row[-len(answer) :].float().log_softmax(-1)
            targets = torch.tensor(answer, device=scores.device)
            likely = scores.gather(-1, targets[:, None]).sum()
            found.append((float(likely), bool((scores.argmax(-1) == targets).all())))
        return found

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [B, T], padded on the left, and 0 where they are padded, else 1."""
        longest, device = max(map(len, rows)), self.model.device
        padding = [longest - len(ids) for ids in rows]
        end = self.tokenizer.eos_token_id
        padded = [[end] * n + [*ids] for n, ids in zip(padding, rows, strict=True)]
        mask = torch.arange(longest)[None] >= torch.tensor(padding)[:, None]
        return torch.tensor(padded, device=device), mask.long().to(device)


class Answerer(Answering):
    """One round of one run."""

    def __init__(self, trained: Trained) -> None:
        """Nothing is loaded before it is asked for. Runs on one base model share it in memory."""
        self.trained = trained

    @cached_property
    def model(self) -> "LlamaForCausalLM":
        """The LLaMA, with prompts and gate where there are some."""
        trained = self.trained
        layer, llama = trained.layer, _frozen(trained.config.backbone)
        generates_plainly(llama, self.tokenizer)
        if PROMPTS not in trained.tensors:
            return llama
        return with_prompts(llama, trained.config.prompts, layer, trained.tensors)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base model's."""
        return load_tokenizer(self.trained.config.backbone)

    @property
    def experts(self) -> list[str]:
        """Their numbers, with tasks where the gate was pretrained on tasks."""
        return self.trained.experts if self.trained.method.gated else []

    def adapted(self) -> contextlib.AbstractContextManager[None]:
        """The adapters of a method that has some."""
        trained = self.trained
        own = (trained.method, trained.config.adapters, trained.tensors)
        return with_adapters(self.model, *own)


def batches(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The places of `lengths` in batches of up to `TOGETHER` similar ones, the longest first.

    Args:
        lengths: tokens of each row.
        room: tokens that a row may have for the others' sake; a longer one is alone.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    alone = sum(length > room for length in lengths)
    yield from ([place] for place in order[:alone])
    for start in range(alone, len(order), TOGETHER):
        yield order[start : start + TOGETHER]


@lru_cache(maxsize=1)
def _frozen(config: BackboneConfig) -> "LlamaForCausalLM":
    return load_frozen(config)
