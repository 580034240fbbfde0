"""The one HTTP client of the house: a server that speaks OpenAI's chat format, asked until it answers.

A server is asked again, waiting longer each time and never as long as its neighbour, when it is busy, away or
gives no answer in time; where it says how long (Retry-After) that is respected. What it says for good, such
as a wrong key or model, and a server that stays silent, end in `Refused` with its own words.
Redirects are not followed: a key goes to the address that it belongs to.
"""

import email.utils
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx2

from training.rlhf.failures import Refused
from training.rlhf.progress import raise_if_stopped

KEY = "RATCHET_MODEL_SERVER_KEY"
KEYS = "RATCHET_MODEL_SERVER_KEYS"  # a file: a JSON object of keys by address
FIRST_WAIT = 0.5  # seconds; each wait is twice the one before
LONGEST_WAIT = 30.0
LONGEST_TOLD = 300.0  # of what a server asks for
_AGAIN = {408, 409, 425, 429}  # and whatever is the server's own fault
_SAID = 200  # characters of a server's words that are kept

Body = dict[str, Any]


def key_for(address: str) -> str:
    """The key of a server that writes: of its address in the file KEYS, else KEY; empty where it has none.

    Raises Refused for a file that cannot be read.
    """
    path = os.environ.get(KEYS, "")
    if not path:
        return os.environ.get(KEY, "")
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {str(name).rstrip("/"): str(key) for name, key in known.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise Refused(
            f"The file of keys cannot be read: {type(error).__name__}.",
            f"{KEYS}={path}",
            'Write a JSON object there, such as {"https://models.example/v1": "key"}.',
        ) from error
    return found.get(address.rstrip("/"), os.environ.get(KEY, ""))


class ChatServer:
    """POST {address}/chat/completions. `who` and `do` are for errors: "The judge", what to put right."""

    def __init__(
        self, address: str, *, key: str, timeout: float, retries: int, who: str, where: str, do: str
    ) -> None:
        base = address.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.retries = retries
        self.who, self.where, self.do = who, where, do
        self._key = key
        self._asks_for_length = "max_tokens"  # by this name, until the server wants its newer one
        self._client = httpx2.Client(
            timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {}, follow_redirects=False
        )

    def ask(self, body: Body) -> Body:
        """The server's answer, parsed. Raises Refused, and Cancelled when a stop was asked for."""
        said, told, attempt = "", 0.0, 0
        while attempt <= self.retries:
            self._wait(attempt, told)
            told = 0.0
            try:
                response = self._client.post(self.url, json=self._named(body))
            except httpx2.TransportError as error:
                said = f"{type(error).__name__}: {error}"
                attempt += 1
                continue
            except (httpx2.InvalidURL, httpx2.HTTPError) as error:
                raise self.refused(f"{type(error).__name__}: {error}") from error
            if response.status_code == 200:
                return self._parsed(response)
            if self._wants_the_newer_name(response):
                continue
            said = f"HTTP {response.status_code} {response.text[:_SAID].strip()}".strip()
            if response.status_code < 500 and response.status_code not in _AGAIN:
                raise self.refused(said)
            told = seconds_told(response.headers.get("Retry-After", ""))
            attempt += 1
        raise self.refused(said)

    def ask_all(
        self, bodies: Sequence[Body], *, at_once: int, on_answer: Callable[[int, Body], None]
    ) -> None:
        """Ask `at_once` questions at a time; `on_answer` hears each answer with its place, in any order.

        What is answered is handed over before an error is raised.
        """
        threads = ThreadPoolExecutor(max_workers=at_once)
        try:
            waiting = {threads.submit(self.ask, body): place for place, body in enumerate(bodies)}
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                failed: BaseException | None = None
                for one in done:
                    place = waiting.pop(one)
                    if (error := one.exception()) is None:
                        on_answer(place, one.result())
                    else:
                        failed = failed or error
                raise_if_stopped()
                if failed is not None:
                    raise failed
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # what is under way ends by its own timeout

    def refused(self, said: str) -> Refused:
        """The error in words; a key that the server repeats is not among them."""
        hidden = said.replace(self._key, "…") if self._key else said
        return Refused(f"{self.who} does not answer: {hidden}.", self.where, self.do)

    def _named(self, body: Body) -> Body:
        if self._asks_for_length == "max_tokens" or "max_tokens" not in body:
            return body
        return {("max_completion_tokens" if name == "max_tokens" else name): v for name, v in body.items()}

    def _wants_the_newer_name(self, response: httpx2.Response) -> bool:
        if response.status_code != 400 or self._asks_for_length != "max_tokens":
            return False
        if "max_completion_tokens" not in response.text:
            return False
        self._asks_for_length = "max_completion_tokens"
        return True

    def _wait(self, attempt: int, told: float) -> None:
        """Nothing before the first attempt; a stop is heard within a fifth of a second."""
        raise_if_stopped()
        longest = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) if attempt else 0.0
        own = longest * random.uniform(0.5, 1)
        until = time.monotonic() + max(own, told)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(0.2, left))
            raise_if_stopped()

    def _parsed(self, response: httpx2.Response) -> Body:
        try:
            found = response.json()
            message = found["choices"][0]["message"]
            message.get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self.refused("what came back is not OpenAI's chat format") from error
        return dict(found)


def content_of(answer: Body) -> str:
    """The text of an answer that `ask` gave; "" for a choice without any."""
    content = answer["choices"][0]["message"].get("content")
    return content if isinstance(content, str) else ""


def seconds_told(header: str) -> float:
    """What a Retry-After asks for, in seconds or as a date; 0 for anything else.

    >>> seconds_told("7"), seconds_told("1e9"), seconds_told("soon"), seconds_told("")
    (7.0, 300.0, 0.0, 0.0)
    """
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_TOLD) if seconds == seconds else 0.0
