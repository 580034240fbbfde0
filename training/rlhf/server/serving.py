"""A policy behind the interface that OpenAI's clients speak: chat and completions, whole or as a stream.

An ASGI application around one model in memory, which writes for one request at a time; the others wait. For
more than a handful of people take vLLM (`python -m training.rlhf.serve` does where it is installed). What a
request asks for and this cannot do is refused, never ignored: a silent default would be another policy.
"""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import rendering
from training.rlhf.model_files import positions
from training.rlhf.server.writer import Piece, Wish, write

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LARGEST_BODY = 4 << 20  # bytes
DEFAULT_TOKENS = 256
MOST_COMPLETIONS = 16  # of one request
# Settings of OpenAI's interface at which nothing has to be done.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}
IGNORED = {"user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls"}
READ = {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n",
        "seed", "stop", "stream"}  # fmt: skip


class BadRequest(Exception):
    """A request that is not carried out; `param` is the setting at fault."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


@dataclass(frozen=True)
class Asked:
    """A request as it is carried out."""

    wish: Wish
    count: int
    stream: bool
    is_chat: bool


class Server:
    """The application. `key`: what clients send as bearer token; empty for everybody on this machine."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, key: str = ""
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.key = key
        self._turn = asyncio.Lock()
        self._started = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            except BadRequest as error:
                kind = "invalid_request_error" if error.status < 500 else "server_error"
                said = {"message": str(error), "type": kind, "param": error.param, "code": None}
                await _send_json(send, {"error": said}, status=error.status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].rstrip("/")
        if (method, path) == ("GET", "/health"):
            await _send_json(send, {"status": "ok"})
            return
        self._check_key(scope)
        if (method, path) == ("GET", "/v1/models"):
            card = {"id": self.name, "object": "model", "created": self._started, "owned_by": "ratchet"}
            await _send_json(send, {"object": "list", "data": [card]})
        elif (method, path) in (("POST", "/v1/chat/completions"), ("POST", "/v1/completions")):
            asked = self._read(await _body(receive), is_chat=path.endswith("chat/completions"))
            async with self._turn:
                await (self._stream if asked.stream else self._whole)(asked, receive, send)
        else:
            raise BadRequest(f"There is nothing at {method} {scope['path']}.", status=404)

    def _check_key(self, scope: Scope) -> None:
        sent = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        if self.key and sent != f"Bearer {self.key}":
            raise BadRequest("The API key is missing or wrong.", status=401)

    def _read(self, body: dict[str, Any], *, is_chat: bool) -> Asked:
        for name, value in body.items():
            if name in NEUTRAL and value not in NEUTRAL[name]:
                raise BadRequest(f"{name} is not supported here; leave it out.", param=name)
            if name not in NEUTRAL and name not in READ | IGNORED:
                raise BadRequest(f"{name} is no setting of this interface.", param=name)
        if body.get("model") not in (None, "", self.name):
            raise BadRequest(f"This server has one model, {self.name}.", param="model", status=404)
        prompt = self._prompt_ids(body, is_chat=is_chat)
        room = positions(self.model.config) - len(prompt)
        if room < 1:
            raise BadRequest(f"The prompt has {len(prompt)} tokens, and the model reads no more.")
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        wish = Wish(
            prompt_ids=prompt,
            max_new_tokens=min(room, _number(body, "max tokens", most, DEFAULT_TOKENS, 1, 10**6)),
            temperature=_number(body, "temperature", body.get("temperature"), 1.0, 0, 5),
            top_p=_number(body, "top_p", body.get("top_p"), 1.0, 1e-6, 1),
            seed=_number(body, "seed", body.get("seed"), uuid.uuid4().int % 2**31, -(2**63), 2**63),
            stop=_stops(body.get("stop")),
        )
        count = _number(body, "n", body.get("n"), 1, 1, MOST_COMPLETIONS)
        stream = body.get("stream") or False
        if not isinstance(stream, bool):
            raise BadRequest("stream: true or false.", param="stream")
        return Asked(wish, count, stream, is_chat)

    def _prompt_ids(self, body: dict[str, Any], *, is_chat: bool) -> list[int]:
        if not is_chat:
            prompt = body.get("prompt")
            if not isinstance(prompt, str) or not prompt:
                raise BadRequest("prompt: a text.", param="prompt")
            return list(self.tokenizer(prompt)["input_ids"])
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages: a list, at least one.", param="messages")
        try:
            return rendering.prompt_ids(self.tokenizer, [_message(one) for one in messages])
        except rendering.RenderError as error:
            raise BadRequest(str(error), param="messages") from error

    async def _whole(self, asked: Asked, receive: Receive, send: Send) -> None:
        choices, tokens = [], 0
        for number in range(asked.count):
            text, last = [], Piece("", "length", 0)
            async for piece in self._pieces(asked, number, receive):
                text.append(piece.text)
                last = piece
            tokens += last.tokens
            said = "".join(text)
            content = {"message": {"role": "assistant", "content": said}} if asked.is_chat else {"text": said}
            choices.append({"index": number, **content, "finish_reason": last.finish, "logprobs": None})
        given = len(asked.wish.prompt_ids)
        usage = {"prompt_tokens": given, "completion_tokens": tokens, "total_tokens": given + tokens}
        await _send_json(send, {**self._head(asked), "choices": choices, "usage": usage})

    async def _stream(self, asked: Asked, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        head = self._head(asked, chunk=True)
        for number in range(asked.count):
            opening: dict[str, str] = {"role": "assistant"}
            async for piece in self._pieces(asked, number, receive):
                delta = {**opening, "content": piece.text} if piece.text else opening
                opening = {}
                content = {"delta": delta} if asked.is_chat else {"text": piece.text}
                choice = {"index": number, **content, "finish_reason": piece.finish, "logprobs": None}
                await _send_event(send, json.dumps({**head, "choices": [choice]}, ensure_ascii=False))
        await _send_event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})

    def _head(self, asked: Asked, *, chunk: bool = False) -> dict[str, Any]:
        kind = "chat.completion" if asked.is_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if chunk and asked.is_chat else kind,
            "created": int(time.time()),
            "model": self.name,
        }

    async def _pieces(self, asked: Asked, number: int, receive: Receive) -> AsyncIterator[Piece]:
        """What the model writes, from its thread; it stops when the client is gone."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | Exception | None]()
        stop = threading.Event()

        def work() -> None:
            last: Exception | None = None
            try:
                for piece in write(self.model, self.tokenizer, asked.wish, number=number, stop=stop):
                    loop.call_soon_threadsafe(queue.put_nowait, piece)
            except Exception as error:
                last = error
            loop.call_soon_threadsafe(queue.put_nowait, last)

        watching = asyncio.create_task(_wait_until_gone(receive, stop))
        working = loop.run_in_executor(None, work)
        try:
            while (piece := await queue.get()) is not None:
                if isinstance(piece, Exception):
                    raise BadRequest(f"The model failed: {piece}", status=500) from piece
                yield piece
        finally:
            stop.set()
            watching.cancel()
            await working


async def _wait_until_gone(receive: Receive, stop: threading.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stop.set()


async def _live(receive: Receive, send: Send) -> None:
    for done in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{done}.complete"})


async def _body(receive: Receive) -> dict[str, Any]:
    content, more = b"", True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > LARGEST_BODY:
            raise BadRequest(f"The request is larger than {LARGEST_BODY:,} bytes.", status=413)
    try:
        found = json.loads(content)
    except ValueError as error:
        raise BadRequest(f"The request is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest("The request: expected an object.")
    return found


async def _send_json(send: Send, value: dict[str, Any], *, status: int = 200) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def _message(one: Any) -> dict[str, str]:
    role, content = (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
    if isinstance(content, list):  # parts, of which only text can be read
        are_texts = all(isinstance(part, dict) and part.get("type") == "text" for part in content)
        content = "".join(str(part.get("text", "")) for part in content) if are_texts else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRequest("messages: each has a role and a content, both text.", param="messages")
    return {"role": role, "content": content}


def _number(body: dict[str, Any], name: str, value: Any, default: Any, low: float, high: float) -> Any:
    if value is None:
        return default
    is_whole = isinstance(default, int)
    fits = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        kind = "a whole number" if is_whole else "a number"
        raise BadRequest(f"{name} is {value!r}: {kind} from {low:g} to {high:g}.", param=name)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest("stop: a text, or up to four of them.", param="stop")
    return tuple(stops)
