"""Who a judge is: a server that speaks OpenAI's chat format, or a policy in a folder of ours.

A server is asked until it answers (training.rlhf.chat_server); when it stays silent the run is refused, for a
reward that is missing cannot be guessed. What it says that is no answer to the question is for
training.rlhf.reward_kinds.judge to read.
"""

import os
from collections.abc import Sequence

from training.rlhf import loading, sampling
from training.rlhf.chat_server import Body, ChatServer, content_of
from training.rlhf.config import Sampling
from training.rlhf.rendering import Messages
from training.rlhf.reward_options import JudgeOptions

KEY = "RATCHET_JUDGE_API_KEY"


class ServerVoice:
    """An OpenAI-compatible server: POST {address}/chat/completions, several questions at once."""

    def __init__(self, address: str, options: JudgeOptions, *, where: str) -> None:
        self.options = options
        self.server = ChatServer(
            address,
            key=os.environ.get(KEY, ""),
            timeout=options.timeout,
            retries=options.retries,
            who="The judge",
            where=where,
            do=f"Check the address, the model's name and {KEY} where the worker runs, then resume the run.",
        )

    def answers(self, questions: Sequence[Messages]) -> list[str]:
        """Raises Refused when the server does not answer, and Cancelled when a stop was asked for."""
        said = [""] * len(questions)

        def hear(place: int, answer: Body) -> None:
            said[place] = content_of(answer)

        bodies = [self._body(question) for question in questions]
        self.server.ask_all(bodies, at_once=self.options.at_once, on_answer=hear)
        return said

    def _body(self, question: Messages) -> Body:
        body: Body = {
            "messages": [dict(turn) for turn in question],
            "temperature": 0,
            "max_tokens": self.options.max_tokens,
        }
        return body | ({"model": self.options.model} if self.options.model else {})


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
