"""The API that OpenAI's clients speak: models, chat completions and completions, streamed or whole.

What a request asks for and cannot get is refused by name, never ignored. Nothing is stored.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nanolit.chat.asked import ChatCompletion, TextCompletion
from nanolit.chat.dialogue import ReplyText, usual_max_tokens
from nanolit.chat.guard import error_body, refusal
from nanolit.chat.models import Defaults, Models, Served
from nanolit.inference import request as engine_request
from nanolit.inference.request import Token
from nanolit.machine.paths import parse_json

T = TypeVar("T")
PATIENCE = 10.0  # seconds without a token after which a comment shows that the connection lives
ENDPOINTS = ("GET /v1/models", "GET /v1/models/NAME", "POST /v1/chat/completions", "POST /v1/completions")
SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Answer:
    """The reply to one request: iterate over it for pieces of text, "" where none came for a while.

    `num_tokens` and `finish_reason` are right at the end.
    """

    def __init__(self, served: Served, request: engine_request.Request) -> None:
        self.request, self.num_tokens = request, 0
        self.finish_reason: Literal["stop", "length"] = "length"
        self.end_ids = served.service.end_ids
        self._shown = ReplyText(served.service.tokenizer)
        self._held = HeldBack(request.stop_texts)
        self._tokens: AsyncGenerator[list[Token]] = served.service.stream(request, patience=PATIENCE)

    async def begin(self) -> "Answer":
        """Take a place; Busy if all are taken."""
        await anext(self._tokens)
        return self

    async def __aiter__(self) -> AsyncIterator[str]:
        async with aclosing(self._tokens):
            async for tokens in self._tokens:
                yield "".join(map(self._take, tokens))
                if self.finish_reason == "stop":
                    return
            yield self._rest()

    def _take(self, token: Token) -> str:
        if self.finish_reason == "stop":
            return ""
        if token.id in self.end_ids:
            self.finish_reason = "stop"
            return self._rest()
        self.num_tokens += 1
        piece = self._held.push(self._shown.push(token.id))
        if self._held.stopped:
            self.finish_reason = "stop"
        return piece

    def _rest(self) -> str:
        return self._held.push(self._shown.flush()) + self._held.rest()

    async def whole(self) -> str:
        return "".join([piece async for piece in self])

    @property
    def usage(self) -> dict[str, int]:
        asked = len(self.request.prompt_ids)
        return {
            "prompt_tokens": asked,
            "completion_tokens": self.num_tokens,
            "total_tokens": asked + self.num_tokens,
        }


class HeldBack:
    """Keeps back the end of a text for as long as it may be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.stopped, self._kept = stops, False, ""
        self._most = max(map(len, stops), default=1) - 1

    def push(self, piece: str) -> str:
        text = self._kept + piece
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.stopped = self.stopped or bool(places)
        cut = min(places) if places else max(len(text) - self._most, 0)
        self._kept = "" if places else text[cut:]
        return text[:cut]

    def rest(self) -> str:
        rest, self._kept = self._kept, ""
        return rest


def request_of(
    served: Served, asked: ChatCompletion | TextCompletion, defaults: Defaults
) -> engine_request.Request:
    """Return what the engine is asked; ValueError for a request that this model cannot serve."""
    context = served.service.context
    max_tokens = asked.max_tokens or usual_max_tokens(context)
    if isinstance(asked, ChatCompletion):
        if served.is_base:
            raise ValueError(f"{served.name} is a base model, which has no chat roles; use /v1/completions")
        prompt_ids, dropped = served.talker.prompt(asked.plain(), max_tokens=max_tokens)
        if dropped:
            raise ValueError(
                f"the messages and max_tokens ({max_tokens:,}) don't fit the model's context "
                f"({context:,}); leave out the oldest {2 * dropped}, or lower max_tokens"
            )
    else:
        tokenizer = served.service.tokenizer
        prompt_ids = [tokenizer.bos_id, *tokenizer.encode(asked.prompt)]
        if len(prompt_ids) + max_tokens > context:
            raise ValueError(
                f"the prompt ({len(prompt_ids):,} tokens) and max_tokens ({max_tokens:,}) don't fit the "
                f"model's context ({context:,}); shorten the prompt or lower max_tokens"
            )
    return engine_request.Request(
        prompt_ids=prompt_ids,
        max_tokens=max_tokens,
        seed=secrets.randbits(63) if asked.seed is None else asked.seed,
        stop_texts=tuple(asked.stop or ()),
        keep=isinstance(asked, ChatCompletion),
        temperature=defaults.temperature if asked.temperature is None else asked.temperature,
        top_k=(defaults.top_k if asked.top_k is None else asked.top_k) or None,
        top_p=asked.top_p or 1.0,
        repetition_penalty=asked.repetition_penalty or 1.0,
    )


def routes(models: Models, defaults: Defaults) -> APIRouter:
    """Return the API's routes; temperature and top_k are the `defaults`' where a request gives none."""
    router, created = APIRouter(prefix="/v1"), int(time.time())

    def card(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": created, "owned_by": "nanolit"}

    @router.get("/models")
    def list_models():
        return {"object": "list", "data": [card(name) for name in models.names]}

    @router.get("/models/{name:path}")
    def retrieve_model(name: str):
        found = models.find(name)
        return card(found) if found else no_such_model(name, models)

    async def complete(
        request: Request, kind: type[ChatCompletion | TextCompletion], shape: type["TextShape"]
    ) -> Response:
        content = parse_json(await request.body(), Path("the body"), remedy="send one JSON object")
        asked = kind.model_validate(content)
        if asked.model is not None and models.find(asked.model) is None:
            return no_such_model(asked.model, models)
        with ExitStack() as until_begun:
            served = await asyncio.to_thread(until_begun.enter_context, models.lent(asked.model))
            engine_request = await asyncio.to_thread(request_of, served, asked, defaults)
            answer, form = await Answer(served, engine_request).begin(), shape(served.name)
        if asked.stream:
            events = form.events(answer, with_usage=asked.usage_wanted)
            return StreamingResponse(events, media_type="text/event-stream", headers=SSE_HEADERS)
        text = await unless_the_client_leaves(request, answer.whole())
        return Response(status_code=499) if text is None else JSONResponse(form.whole(text, answer))

    @router.post("/chat/completions")
    async def chat_completions(request: Request):
        return await complete(request, ChatCompletion, ChatShape)

    @router.post("/completions")
    async def completions(request: Request):
        return await complete(request, TextCompletion, TextShape)

    @router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
    def absent(path: str, request: Request):
        return refusal(404, f"there is no {request.method} /v1/{path}; available: {', '.join(ENDPOINTS)}")

    return router


class TextShape:
    """JSON forms of a continued text."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str) -> None:
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def choice(self, text: str) -> dict[str, object]:
        return {"text": text}

    def delta(self, text: str) -> dict[str, object]:
        return {"text": text}

    def first(self) -> dict[str, object] | None:
        return None

    def whole(self, text: str, answer: Answer) -> dict[str, object]:
        ending = {"index": 0, "finish_reason": answer.finish_reason, "logprobs": None}
        choices = [self.choice(text) | ending]
        return self.head | {"object": self.kind, "choices": choices, "usage": answer.usage}

    def _chunk(self, delta: dict[str, object], finish_reason: str | None = None) -> str:
        choices = [{"index": 0, "finish_reason": finish_reason, "logprobs": None} | delta]
        return event(self.head | {"object": self.chunk_kind, "choices": choices})

    async def events(self, answer: Answer, *, with_usage: bool) -> AsyncIterator[str]:
        yield ": waiting\n\n"  # the first byte at once: proxies give up on a silent answer
        if first := self.first():
            yield self._chunk(first)
        try:
            async for piece in answer:
                yield self._chunk(self.delta(piece)) if piece else ": waiting\n\n"
        except (ValueError, RuntimeError) as error:
            yield event(error_body(str(error), kind="server_error"))
            return
        yield self._chunk(self.delta(""), answer.finish_reason)
        if with_usage:
            yield event(self.head | {"object": self.chunk_kind, "choices": [], "usage": answer.usage})
        yield "data: [DONE]\n\n"


class ChatShape(TextShape):
    """JSON forms of a reply in a conversation."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, text: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str) -> dict[str, object]:
        return {"delta": {"content": text} if text else {}}

    def first(self) -> dict[str, object]:
        return {"delta": {"role": "assistant", "content": ""}}


def event(content: dict[str, object]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def no_such_model(name: str, models: Models) -> Response:
    message = f"there is no model {name!r}; available: {', '.join(models.names)}"
    return refusal(404, message, param="model", code="model_not_found")


async def unless_the_client_leaves(request: Request, work: Awaitable[T]) -> T | None:
    """Return the result of `work`; None, having cancelled it, if the client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
