"""OpenAI's chat completions over HTTP, for one model.

Why not the serving of transformers 5.17 (`transformers.cli.serving`), whose parts one may subclass:
what it does beside the model is what differs here. Its streams lose characters that are spelled by
several tokens where the answer ends in the middle of one or has bytes that are none; it draws
seeds in the thread that takes requests, not in the one that answers; a temperature alone does not
make it sample; texts of `stop` stay in the answer; an answer that is not streamed goes on when its
client has left; errors have no OpenAI form; `max_completion_tokens` is left out in silence; and
anybody may have it load or drop models (`/load_model`, `/reset`).

Every completion, and the first chunk of every stream, has a field of its own beside OpenAI's:
``"mops": {"experts": {"0 (sums)": 0.93, …}}``, the weights of the experts for the question, which
sum to 1; ``"experts": null`` for what has no gate.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from mops_fl.errors import DataError
from mops_fl.generation.chat_request import ChatRequest, RequestError
from mops_fl.generation.desk import Asked, ClosedError, Desk, Reply

_LOG = logging.getLogger("uvicorn.error")


def chat_app(desk: Desk, name: str, experts: Sequence[str]) -> FastAPI:
    """The application.

    Args:
        desk: where questions are answered.
        name: of the model.
        experts: what each is called, in the gate's order.
    """
    app = FastAPI(title="MoPs-FL", docs_url=None, redoc_url=None, openapi_url=None)
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "mops-fl"}
    _answer_errors(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "open": desk.open}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{asked:path}")
    async def one_model(asked: str) -> dict[str, Any]:
        _check_model(asked, name)
        return model

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(request: Request, body: ChatRequest) -> JSONResponse | StreamingResponse:
        _check_model(body.model, name)
        body.check()
        reply = desk.ask(Asked(await _ids(desk, body), body.sampling, body.stops))
        completion = Completion(reply, name, experts)
        if body.stream:
            return _Stream(reply, completion.events(usage=body.usage_in_stream))
        return await _whole(request, reply, completion)

    return app


def _check_model(asked: str, name: str) -> None:
    if asked != name:
        raise RequestError(
            f"model {asked!r} is not here: the one that is is {name!r}",
            "model",
            "model_not_found",
            404,
        )


async def _ids(desk: Desk, body: ChatRequest) -> list[int]:
    question = body.question()
    try:
        return await asyncio.to_thread(desk.answers.ids, question)
    except DataError as error:
        raise RequestError(str(error), "messages", "context_length_exceeded") from error


class Completion:
    """A reply in OpenAI's words."""

    def __init__(self, reply: Reply, model: str, experts: Sequence[str]) -> None:
        """Of a reply that need not have begun; `experts` are their names."""
        self._reply = reply
        self._names = experts
        self._facts = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self) -> dict[str, Any]:
        """The completion, when it is done."""
        reply = self._reply
        await reply.begun()
        text = "".join([piece async for piece in reply.pieces()])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        return {
            **self._facts,
            "object": "chat.completion",
            "choices": [{**choice, "finish_reason": reply.finish_reason}],
            "usage": self._usage(),
            "mops": self._mops(),
        }

    async def events(self, *, usage: bool) -> AsyncIterator[str]:
        """The completion in chunks, as they come, each an event of a stream.

        Args:
            usage: whether a chunk with the numbers of tokens comes last.
        """
        reply = self._reply
        try:
            await reply.begun()
            first = self._chunk({"role": "assistant", "content": ""})
            yield _event({**first, "mops": self._mops()})
            async for piece in reply.pieces():
                yield _event(self._chunk({"content": piece}))
            yield _event(self._chunk({}, reply.finish_reason))
            if usage:
                yield _event({**self._chunk({}), "choices": [], "usage": self._usage()})
        except ClosedError as error:
            yield _event(_error(str(error), kind="server_error"))
        except Exception as error:
            yield _event(_failed(error))
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._facts, "object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self) -> dict[str, int]:
        asked, made = len(self._reply.asked.ids), self._reply.made
        return {
            "prompt_tokens": asked,
            "completion_tokens": made,
            "total_tokens": asked + made,
        }

    def _mops(self) -> dict[str, Any]:
        weights = self._reply.experts
        if weights is None:
            return {"experts": None}
        return {"experts": dict(zip(self._names, weights, strict=True))}


class _Stream(StreamingResponse):
    """A stream whose end, whoever brings it about, is that of the answer."""

    def __init__(self, reply: Reply, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.cancel()


async def _whole(request: Request, reply: Reply, completion: Completion) -> JSONResponse:
    """The completion at once; where its client leaves before, the answer ends."""
    made = asyncio.ensure_future(completion.whole())
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((made, left), return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            return JSONResponse({})  # nobody reads it
        return JSONResponse(made.result())
    except ClosedError:
        raise
    except Exception as error:
        return JSONResponse(_failed(error), 500)
    finally:
        reply.cancel()
        made.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _error(
    message: str, param: str | None = None, code: str | None = None, kind: str = ""
) -> dict[str, Any]:
    """An error in OpenAI's form."""
    error = {"message": message, "type": kind or "invalid_request_error"}
    return {"error": {**error, "param": param, "code": code}}


def _failed(error: Exception) -> dict[str, Any]:
    """Of an answer that could not be made; where, is printed."""
    _LOG.error("an answer could not be made", exc_info=error)
    message = f"the answer could not be made: {str(error) or type(error).__name__}"
    return _error(message, kind="server_error")


def _answer_errors(app: FastAPI) -> None:
    """Have errors take OpenAI's form."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(_error(str(error), error.param, error.code), error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][1:]))
        message = f"{field}={str(first['input'])[:100]!r}: {first['msg']}"
        if first["type"] == "json_invalid":
            field, message = "", f"the body is malformed JSON: {first['ctx']['error']}"
        elif first["type"] == "missing":
            message = f"{field or 'the body'} is missing: give it"
        if "json" not in request.headers.get("content-type", ""):
            message = "the body is not said to be JSON: send Content-Type: application/json"
        return JSONResponse(_error(message, field or None), 400)

    @app.exception_handler(HTTPException)
    async def no_such_place(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(_error(message), error.status_code)

    @app.exception_handler(ClosedError)
    async def ending(_: Request, error: ClosedError) -> JSONResponse:
        return JSONResponse(_error(str(error), kind="server_error"), 503)
