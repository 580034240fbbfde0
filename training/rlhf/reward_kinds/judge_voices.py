"""Who a judge is: a server that speaks OpenAI's chat format, or a policy in a folder of ours.

A server is asked again, waiting longer each time, when it is busy, away or gives no answer in time; when it
stays silent the run is refused, for a reward that is missing cannot be guessed. What it says that is no
answer to the question is for training.rlhf.reward_kinds.judge to read.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import httpx2

from training.rlhf import loading, sampling
from training.rlhf.config import Sampling
from training.rlhf.failures import Refused
from training.rlhf.progress import raise_if_stopped
from training.rlhf.rendering import Messages
from training.rlhf.reward_options import JudgeOptions

KEY = "RATCHET_JUDGE_API_KEY"
FIRST_WAIT = 0.5  # seconds; each wait is twice the one before
LONGEST_WAIT = 30.0
_AGAIN = {408, 409, 425, 429}  # and whatever is the server's own fault


class ServerVoice:
    """An OpenAI-compatible server: POST {address}/chat/completions, several questions at once."""

    def __init__(self, address: str, options: JudgeOptions, *, where: str) -> None:
        self.options = options
        self.where = where
        key = os.environ.get(KEY, "")
        base = address.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.client = httpx2.Client(
            timeout=options.timeout, headers={"Authorization": f"Bearer {key}"} if key else {}
        )

    def answers(self, questions: Sequence[Messages]) -> list[str]:
        """Raises Refused when the server does not answer, and Cancelled when a stop was asked for."""
        threads = ThreadPoolExecutor(max_workers=self.options.at_once)
        try:
            asked = [threads.submit(self._answer, question) for question in questions]
            while True:
                state = wait(asked, timeout=0.2, return_when=FIRST_EXCEPTION)
                raise_if_stopped()
                failed = [error for one in state.done if (error := one.exception()) is not None]
                if failed:
                    raise failed[0]
                if not state.not_done:
                    return [one.result() for one in asked]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # what is under way ends by its own timeout

    def _answer(self, question: Messages) -> str:
        said = ""
        for attempt in range(self.options.retries + 1):
            self._wait(attempt)
            try:
                response = self.client.post(self.url, json=self._body(question))
            except httpx2.TransportError as error:
                said = f"{type(error).__name__}: {error}"
                continue
            except (httpx2.InvalidURL, httpx2.HTTPError) as error:
                raise self._refused(f"{type(error).__name__}: {error}") from error
            if response.status_code == 200:
                return self._content(response)
            said = f"HTTP {response.status_code} {response.text[:200].strip()}".strip()
            if response.status_code < 500 and response.status_code not in _AGAIN:
                raise self._refused(said)
        raise self._refused(said)

    def _wait(self, attempt: int) -> None:
        """Nothing before the first attempt; a stop is heard within a fifth of a second."""
        raise_if_stopped()
        until = time.monotonic() + (min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) if attempt else 0)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(0.2, left))
            raise_if_stopped()

    def _body(self, question: Messages) -> dict[str, object]:
        body: dict[str, object] = {
            "messages": [dict(turn) for turn in question],
            "temperature": 0,
            "max_tokens": self.options.max_tokens,
        }
        return body | ({"model": self.options.model} if self.options.model else {})

    def _content(self, response: httpx2.Response) -> str:
        """The answer's text; "" for a choice without any. Raises Refused for what is not the format."""
        try:
            message = response.json()["choices"][0]["message"]
            content = message.get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._refused("what came back is not OpenAI's chat format") from error
        return content if isinstance(content, str) else ""

    def _refused(self, said: str) -> Refused:
        return Refused(
            f"The judge does not answer: {said}.",
            self.where,
            f"Check the address, the model's name and {KEY} where the worker runs, then resume the run.",
        )


class PolicyVoice:
    """A policy of ours, in memory beside the one that learns; it answers without chance."""

    def __init__(self, location: str, options: JudgeOptions, *, seed: int) -> None:
        self.tokenizer = loading.load_tokenizer(location)
        self.model = loading.load_policy(location, dtype=loading.serving_dtype(location))
        loading.fit(self.model, self.tokenizer, where=location)
        loading.use_device(self.model)
        self.sampling = Sampling(temperature=0, max_new_tokens=options.max_tokens)
        self.seed = seed

    def answers(self, questions: Sequence[Messages]) -> list[str]:
        drawn = sampling.generate(
            self.model, self.tokenizer, questions, sampling=self.sampling, seed=self.seed
        )
        return [one.text for one in drawn]
