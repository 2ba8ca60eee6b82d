"""Many askers and one model: questions are answered one after the other, in one thread.

Each is answered as it would be alone: its own seed, its own weights of the experts, and no other
question beside it in a batch.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transformers.generation.streamers import BaseStreamer

from mops_fl.data import Example
from mops_fl.errors import MopsError
from mops_fl.generation.answerer import DECODED, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN = "�"
"""What stands in a text for bytes that are no character, or not a whole one yet."""


class Answers(Protocol):
    """What can be asked, as `mops_fl.generation.answerer.Answerer` has it."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its own."""

    def ids(self, question: Example) -> list[int]:
        """Token ids of a question; a `DataError` for one that is too long."""

    def gate(self, ids: Sequence[int]) -> list[float] | None:
        """Weights of the experts for a question, which sum to 1; None without a gate."""

    def answer(self, ids: Sequence[int], sampling: Sampling, streamer: BaseStreamer) -> str:
        """The answer, within the room that there is; each token goes to the streamer, too."""


class ClosedError(MopsError):
    """The server ends: nothing is answered any more."""


class _EnoughError(Exception):
    """No further token is wanted."""


@dataclass(frozen=True)
class Asked:
    """A question, and how it is to be answered."""

    ids: Sequence[int]
    sampling: Sampling
    stops: Sequence[str] = ()
    """Texts before which the answer ends."""


class GrowingText:
    """The text of tokens that come one by one, given out as far as no later token changes it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> None:
        """Begin without tokens; `stops` are texts before which the text ends."""
        self.tokens: list[int] = []
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._given = ""

    def add(self, token: int) -> str:
        """What a token adds to the text given out so far; `stopped` where the text ends."""
        self.tokens.append(token)
        whole = self._whole()
        if found := [place for stop in self._stops if (place := whole.find(stop)) >= 0]:
            self.stopped = True
            return self._give(whole[: min(found)])
        certain = whole.rstrip(_UNKNOWN)
        return self._give(certain[: len(certain) - self._begun(certain)])

    def rest(self) -> str:
        """What is left after the last token."""
        return "" if self.stopped else self._give(self._whole())

    def _whole(self) -> str:
        return str(self._tokenizer.decode(self.tokens, **DECODED))

    def _begun(self, text: str) -> int:
        """Characters at the end with which one of the stops may begin."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, len(stop))
                if text.endswith(stop[:length])
            ),
            default=0,
        )

    def _give(self, text: str) -> str:
        """The part of `text` that was not given out; nothing where it begins otherwise.

        SentencePiece shows bytes that are no characters all as unknown, those before them, too.
        """
        if not text.startswith(self._given):
            return ""
        new = text[len(self._given) :]
        self._given = text
        return new


class Reply(BaseStreamer):
    """One answer: made in the desk's thread, read in the event loop that it was made in."""

    def __init__(self, asked: Asked, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Not begun."""
        self.asked = asked
        self.experts: list[float] | None = None
        """Weights, once the answer has begun."""
        self._text = GrowingText(tokenizer, asked.stops)
        self._end = tokenizer.eos_token_id
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._prompt_seen = False

    @property
    def made(self) -> int:
        """Tokens so far."""
        return len(self._text.tokens)

    @property
    def finish_reason(self) -> str:
        """``stop`` where the model or a stop ended the answer, ``length`` where the room did."""
        ended = self._text.stopped or self._text.tokens[-1:] == [self._end]
        return "stop" if ended else "length"

    def cancel(self) -> None:
        """Nobody reads this any more: make no further token."""
        self._cancelled.set()

    async def begun(self) -> None:
        """Wait for the weights of the experts. Whatever went wrong is raised."""
        self.experts = await self._next()

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes, once the answer has begun. Whatever went wrong is raised."""
        while (piece := await self._next()) is not None:
            yield piece

    async def _next(self) -> Any:
        said = await self._said.get()
        if isinstance(said, Exception):
            raise said
        return said

    def say(self, said: object) -> None:
        """From any thread: the weights, then texts, then None; or what went wrong."""
        self._loop.call_soon_threadsafe(self._said.put_nowait, said)

    def check(self) -> None:
        """Go on only where somebody reads.

        Raises:
            _EnoughError: nobody does.
        """
        if self._cancelled.is_set():
            raise _EnoughError

    def put(self, value: Any) -> None:
        """As `generate` calls it: with the question's tokens, then with each token."""
        self.check()
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            if piece := self._text.add(token):
                self.say(piece)
            if self._text.stopped:
                raise _EnoughError

    def end(self) -> None:
        """As `generate` calls it; the desk says the rest."""

    def conclude(self) -> None:
        """Say what is left."""
        if piece := self._text.rest():
            self.say(piece)
        self.say(None)


class Desk:
    """Takes questions, and has them answered in the order in which they come."""

    def __init__(self, answers: Answers) -> None:
        """Without questions."""
        self.answers = answers
        self._open: set[Reply] = set()
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "answers")

    @property
    def open(self) -> int:
        """Questions that are being answered or wait for it."""
        return len(self._open)

    def ask(self, asked: Asked) -> Reply:
        """An answer that begins when those before it have ended.

        Raises:
            ClosedError: the desk is closed.
        """
        if self._closed:
            raise ClosedError("the server ends")
        reply = Reply(asked, self.answers.tokenizer)
        self._open.add(reply)
        self._thread.submit(self._answer, reply)
        return reply

    def close(self) -> None:
        """End every answer within a token, and take no question any more."""
        self._closed = True
        for reply in tuple(self._open):
            reply.cancel()
            reply.say(ClosedError("the server ends"))
        self._thread.shutdown(wait=False)

    def _answer(self, reply: Reply) -> None:
        asked = reply.asked
        try:
            reply.check()
            reply.say(self.answers.gate(asked.ids))
            self.answers.answer(asked.ids, asked.sampling, reply)
        except _EnoughError:
            pass
        except Exception as error:  # the next question may do better
            reply.say(error)
        finally:
            self._open.discard(reply)
            reply.conclude()
