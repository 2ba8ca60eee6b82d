"""A trained run behind the interface of EleutherAI's lm-evaluation-harness, which is not imported.

The requests are those of its class `LM`:
https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/api/model.py.
`docs/evaluate.md` shows how the two are joined. What a request calls the context is the question
that the gate sees.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from mops_fl.activity import doing
from mops_fl.data.examples import Example
from mops_fl.data.template import TAIL, head
from mops_fl.data.tokens import continuation_ids, text_ids
from mops_fl.errors import ConfigError
from mops_fl.generation.answerer import Answerer, Sampling, batches

MAX_GEN_TOKS = 256
"""Tokens of an answer where a task does not say; the harness's own default."""


class Request(Protocol):
    """What is used of the harness's `Instance`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What is asked."""


class TrainedLM:
    """The requests of the harness, answered; to be mixed into its `LM`, which comes after it."""

    def __init__(self, answerer: Answerer) -> None:
        """Nothing is loaded before the first request."""
        super().__init__()
        self.answerer = answerer

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps requests by."""
        return self.answerer.trained.facts.tokenizer_digest

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The template of training, turn after turn; a system's words come before the user's.

        Args:
            chat_history: turns with ``role`` and ``content``.
            add_generation_prompt: is of no matter: an answer comes behind the user's last words,
                and goes on where it has begun.
        """
        text = before = ""
        for turn in chat_history:
            if turn["role"] == "system":
                before = turn["content"] + "\n\n"
            elif turn["role"] == "assistant":
                text += turn["content"]
            else:
                asked = head(Example(before + turn["content"], "", "", "")) + TAIL
                text, before = f"{text}\n\n{asked}" if text else asked, ""
        return text

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation in nats, and whether it is the greedy one.

        Args:
            requests: of (context, continuation). What is longer than the model's context loses the
                beginning of its own.
        """
        return self._likely([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Log-probability of each whole text in nats.

        A text longer than the model's context is predicted part by part, each token once, the last
        part behind as much of the text as there is room for.

        Args:
            requests: of (text,).
        """
        parts, owner = [], []
        for number, request in enumerate(requests):
            own = [*_parts(self._ids(request.args[0]), self._start, self.answerer.context)]
            parts += own
            owner += [number] * len(own)
        found = [0.0] * len(requests)
        for number, (value, _) in zip(owner, self._likely(parts), strict=True):
            found[number] += value
        return found

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Greedy answers, up to what ends them.

        Args:
            requests: of (context, options), of which ``until`` and ``max_gen_toks`` count.

        Raises:
            ConfigError: a task wants its answers drawn.
        """
        found, places = [""] * len(requests), dict[int, list[int]]()
        for place, request in enumerate(requests):
            options = request.args[1]
            if options.get("do_sample") and options.get("temperature", 1.0):
                raise ConfigError("do_sample=true: answers are greedy here; set do_sample=false")
            most = int(options.get("max_gen_toks", MAX_GEN_TOKS))
            places.setdefault(most, []).append(place)
        for most, own in places.items():
            room = max(1, self.answerer.context - most)
            asked = [self._context(requests[place].args[0])[-room:] for place in own]
            with doing("answers", of=len(own)) as on_step:
                texts = self.answerer.in_batches(asked, Sampling(most), on_step)
            for place, text in zip(own, texts, strict=True):
                found[place] = _up_to(text, requests[place].args[1].get("until", ()))
        return found

    def _likely(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """`Answerer.loglikelihoods` of any number of pairs."""
        found = [(0.0, True)] * len(pairs)
        with doing("log-likelihoods", of=len(pairs)) as on_step:
            done = 0
            lengths = [len(question) + len(answer) for question, answer in pairs]
            for places in batches(lengths, self.answerer.context):
                values = self.answerer.loglikelihoods([pairs[place] for place in places])
                for place, value in zip(places, values, strict=True):
                    found[place] = value
                done += len(places)
                on_step(done, len(pairs))
        return found

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids that fit into the model's context, none of both parts empty."""
        tokenizer = self.answerer.tokenizer
        if context:
            question, answer = continuation_ids(context, continuation, tokenizer)
        else:
            question, answer = [self._start], self._ids(continuation)
        answer = answer[-self.answerer.context :]
        room = max(1, self.answerer.context - len(answer) + 1)
        return question[-room:], answer

    def _context(self, text: str) -> list[int]:
        return text_ids(text, self.answerer.tokenizer) or [self._start]

    def _ids(self, text: str) -> list[int]:
        return self.answerer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    @property
    def _start(self) -> int:
        """The token before a text without a context."""
        tokenizer = self.answerer.tokenizer
        begin = tokenizer.bos_token_id
        return tokenizer.eos_token_id if begin is None else begin


def _parts(ids: list[int], start: int, room: int) -> Iterator[tuple[list[int], list[int]]]:
    """A text in parts that are predicted behind what comes before them.

    Args:
        ids: of the text.
        start: the token before it.
        room: tokens that go through the model at a time: all but a part's last.
    """
    done = min(len(ids), room)
    if done:
        yield [start], ids[:done]
    while done < len(ids):
        end = min(done + room, len(ids))
        yield ids[end - room - 1 : done], ids[done:end]
        done = end


def _up_to(text: str, until: str | Sequence[str]) -> str:
    """What comes before the first of the texts that end it."""
    for stop in [until] if isinstance(until, str) else until:
        if stop:
            text = text.split(stop)[0]
    return text
