"""One answer of a policy that a worker holds in memory: asked for over HTTP, as it comes or whole.

The process that held the policy may be gone by now, or on another machine: whatever goes wrong is
NoAnswer, with words for the person who waits.
"""

import json
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from training.models import ChatSide
from training.playground.servings import Place

CONNECT_SECONDS = 5
SILENT_SECONDS = 300  # before the first words, while another answer is written


class NoAnswer(Exception):
    """The policy did not answer; the message says why and what to do."""


@dataclass
class Answer:
    """What has been written so far. `spoilt`: it broke off."""

    policy: str
    seed: int
    began: float = field(default_factory=time.monotonic)
    text: str = ""
    pieces: int = 0
    tokens: int = 0
    finish: str = ""
    first_ms: int | None = None

    def take(self, piece: str) -> None:
        if self.first_ms is None:
            self.first_ms = round(1000 * (time.monotonic() - self.began))
        self.text += piece
        self.pieces += 1

    def message(self, finish: str = "") -> dict[str, Any]:
        """As it is kept in a side's history."""
        return {
            "role": "assistant", "content": self.text, "policy": self.policy, "finish": finish or self.finish,
            "tokens": self.tokens, "first_ms": self.first_ms, "seed": self.seed,
            "seconds": round(time.monotonic() - self.began, 2),
        }  # fmt: skip


def begin(side: ChatSide) -> Answer:
    """A seed that somebody gave counts on with every turn, so that a conversation can be had again."""
    drawn = side.seed if side.seed is not None else random.randrange(2**31)
    turns = sum(message["role"] == "assistant" for message in side.messages)
    return Answer(policy=side.policy.name, seed=(drawn + (turns if side.seed is not None else 0)) % 2**31)


async def stream(side: ChatSide, place: Place, answer: Answer) -> AsyncGenerator[str, None]:
    """The words as they come; `answer` grows with them. Raises NoAnswer."""
    try:
        async with (
            httpx2.AsyncClient(timeout=_timeout(), trust_env=False) as client,
            client.stream(
                "POST", _url(place), json=_body(side, answer, stream=True), headers=_key(place)
            ) as got,
        ):
            if got.status_code != 200:
                raise NoAnswer(_reason(got.status_code, await got.aread()))
            async for line in got.aiter_lines():
                piece = _taken(line, answer)
                if piece:
                    yield piece
    except httpx2.HTTPError as error:
        raise _unreachable(place, error) from error
    if not answer.finish:
        raise NoAnswer("The answer broke off: the process that held the policy ended. Ask again.")


def whole(side: ChatSide, place: Place, answer: Answer) -> None:
    """The same at once, for pages without JavaScript. Raises NoAnswer."""
    try:
        with httpx2.Client(timeout=_timeout(), trust_env=False) as client:
            got = client.post(_url(place), json=_body(side, answer, stream=False), headers=_key(place))
    except httpx2.HTTPError as error:
        raise _unreachable(place, error) from error
    if got.status_code != 200:
        raise NoAnswer(_reason(got.status_code, got.content))
    try:
        said = got.json()
        choice = said["choices"][0]
        answer.take(str(choice["message"]["content"]))
        answer.finish, answer.tokens = str(choice["finish_reason"]), int(said["usage"]["completion_tokens"])
    except (ValueError, LookupError, TypeError) as error:
        raise NoAnswer(f"What came back is no answer: {error!r}.") from error


def _taken(line: str, answer: Answer) -> str:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return ""
    try:
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise NoAnswer(str(event["error"]["message"]))
        if event.get("usage"):
            answer.tokens = int(event["usage"]["completion_tokens"])
        if not event["choices"]:
            return ""
        choice = event["choices"][0]
        piece = str(choice["delta"].get("content") or "")
        answer.finish = str(choice["finish_reason"] or "") or answer.finish
    except (ValueError, LookupError, TypeError) as error:
        raise NoAnswer(f"What came back is no answer: {error!r}.") from error
    if piece:
        answer.take(piece)
    return piece


def _url(place: Place) -> str:
    return f"http://{place.address}/v1/chat/completions"


def _key(place: Place) -> dict[str, str]:
    return {"Authorization": f"Bearer {place.token}"}


def _timeout() -> httpx2.Timeout:
    return httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)


def _body(side: ChatSide, answer: Answer, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": one["role"], "content": one["content"]} for one in side.messages]
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    return {
        "messages": messages, "temperature": side.temperature, "top_p": side.top_p,
        "max_tokens": side.max_tokens, "seed": answer.seed, "stream": stream, **usage,
    }  # fmt: skip


def _reason(status: int, content: bytes) -> str:
    try:
        said = str(json.loads(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        said = f"The policy's process answered with status {status}."
    return f"{said} Clear the conversation to begin anew." if "reads no more" in said else said


def _unreachable(place: Place, error: Exception) -> NoAnswer:
    how = str(error) or type(error).__name__
    return NoAnswer(
        f"The policy's process at {place.address} cannot be reached ({how}). Ask again in a moment. "
        "With a worker on another machine, RATCHET_PLAYGROUND_HOST there must be an address that is reached."
    )
