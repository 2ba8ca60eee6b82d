"""What a request for a chat completion may say, and what it asks for.

The names are OpenAI's. What would change an answer and is not done here is refused, rather than
left out in silence.
"""

import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mops_fl.data import Example
from mops_fl.data.chat import question_of
from mops_fl.data.examples import UnusableError, listed
from mops_fl.generation.answerer import Sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""Fields that are not supported, and the values beside null that ask for nothing."""

WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("parallel_tool_calls", "reasoning_effort", "verbosity"),
)
"""Fields that no answer of this model depends on."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1)]
Stop = Annotated[str, Field(min_length=1)]


class RequestError(Exception):
    """A request that cannot be answered: the message names the field, the value and the fix."""

    def __init__(
        self, message: str, param: str | None, code: str | None = None, status: int = 400
    ) -> None:
        """As OpenAI's errors have it; `param` is the field."""
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | list[Stop] | None = None

    def check(self) -> None:
        """Find fields that are not known or not supported.

        Raises:
            RequestError: there is one.
        """
        for name, value in (self.model_extra or {}).items():
            if value is None or name in WITHOUT_EFFECT or value in NEUTRAL.get(name, ()):
                continue
            fault = "is not supported" if name in NEUTRAL else "is no field that is known"
            raise RequestError(f"{listed([name])} {fault} here: leave it out", name)

    def question(self) -> Example:
        """The whole conversation as one question.

        Raises:
            RequestError: there is none, or it is not all text.
        """
        for message in self.messages:
            content = message.get("content")
            for part in content if isinstance(content, list) else ():
                kind = part.get("type", "text") if isinstance(part, dict) else "text"
                if kind != "text":
                    raise RequestError(f"messages: a part of type {kind!r}: give text", "messages")
        try:
            return Example(question_of(self.messages), "", "", "")
        except UnusableError as error:
            fix = "give turns with texts, one of them not the system's"
            raise RequestError(f"messages: {error}: {fix}", "messages") from error

    @property
    def sampling(self) -> Sampling:
        """What is not said is as `mops-fl generate` has it, but for the seed."""
        default = Sampling()
        tokens = self.max_completion_tokens or self.max_tokens
        return Sampling(
            max_new_tokens=tokens or default.max_new_tokens,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )

    @property
    def stops(self) -> list[str]:
        """Texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage
