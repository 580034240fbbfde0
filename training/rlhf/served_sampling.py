"""A policy behind a server writes for a sampling run, over OpenAI's chat interface.

Many questions are under way at once. Each answer is in `served.jsonl` as soon as it is there, so that a run
that was stopped or killed asks nothing twice. The first question goes alone, and it is the longest: a wrong
key, a wrong name of a model or too little room costs one request, not hundreds.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.rlhf.chat_server import KEY, KEYS, Body, ChatServer, content_of, key_for
from training.rlhf.config import Sampling
from training.rlhf.rendering import Messages
from training.rlhf.run_dir import SampledCompletion
from training.rlhf.server_settings import ServedPolicy

FILE = "served.jsonl"
_FINISHED = {"stop": "eos", "length": "length"}
_SEEDS = 2**31  # what servers take


class Writer:
    """A served policy. `address` as the recipe has it."""

    def __init__(self, address: str, served: ServedPolicy, *, name: str, sampling: Sampling) -> None:
        self.address, self.served, self.name, self.sampling = address, served, name, sampling
        self.server = ChatServer(
            address,
            key=key_for(address),
            timeout=served.timeout,
            retries=served.retries,
            who=f"The server of {name}",
            where=address,
            do=f"Check that it runs, the model's name ({served.model or 'none'}), and {KEY} or {KEYS} where "
            "the worker runs; then resume the run: nothing is asked twice.",
        )

    def body(self, conversation: Messages, seed: int) -> Body:
        body: Body = {
            "messages": [dict(turn) for turn in conversation],
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_new_tokens,
            "seed": seed % _SEEDS,
        }
        if self.served.model:
            body["model"] = self.served.model
        return body | ({"top_p": self.sampling.top_p} if self.sampling.top_p < 1 else {})

    def completion(self, request: int, seed: int, answer: Body) -> SampledCompletion:
        usage = answer.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        finish = str(answer["choices"][0].get("finish_reason") or "eos")[:40]
        return SampledCompletion(
            request=request,
            policy=self.name,
            text=content_of(answer).replace("\0", "\N{REPLACEMENT CHARACTER}"),
            finish=_FINISHED.get(finish, finish),
            tokens=tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0 else 0,
            served={
                "server": self.address,
                "model": self.served.model,
                "reported_model": _reported(answer, "model"),
                "fingerprint": _reported(answer, "system_fingerprint"),
                "seed": seed % _SEEDS,
            },
        )

    def first_question(self, conversations: Sequence[Messages]) -> int:
        """The place of the longest conversation."""
        return max(range(len(conversations)), key=lambda place: _length(conversations[place]))


def _reported(answer: Body, name: str) -> str:
    return str(answer.get(name) or "")[:200]


def _length(conversation: Messages) -> int:
    return sum(len(turn["content"]) for turn in conversation)


def write(
    writer: Writer,
    *,
    folder: Path,
    asked: Sequence[tuple[int, int, Messages]],
    seed: Callable[[int], int],
    on_answer: Callable[[int], None],
) -> dict[int, SampledCompletion]:
    """A completion for each (place, request, conversation), by place; what was answered before is read.

    `on_answer` hears how many are done. Raises Refused, and Cancelled between two answers.
    """
    path = folder / FILE
    found = _answered(path, writer.name)
    left = [one for one in asked if one[0] not in found]
    if left:
        first = writer.first_question([conversation for _, _, conversation in left])
        rounds = [[left[first]], left[:first] + left[first + 1 :]]
        with open(path, "a", encoding="utf-8") as file:
            for questions in rounds:
                seeds = [seed(place) for place, _, _ in questions]

                def hear(number: int, answer: Body, questions: Any = questions, seeds: Any = seeds) -> None:
                    place, request, _ = questions[number]
                    found[place] = writer.completion(request, seeds[number], answer)
                    file.write(json.dumps({"place": place, "completion": found[place]}) + "\n")
                    file.flush()
                    on_answer(len(found))

                bodies = [
                    writer.body(conversation, one)
                    for (_, _, conversation), one in zip(questions, seeds, strict=True)
                ]
                writer.server.ask_all(bodies, at_once=writer.served.at_once, on_answer=hear)
    return found


def _answered(path: Path, name: str) -> dict[int, SampledCompletion]:
    """Answers of an earlier attempt; a last line that its end cut short is taken away."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(path, whole)
    rows = [json.loads(line) for line in content[:whole].splitlines()]
    return {row["place"]: row["completion"] for row in rows if row["completion"]["policy"] == name}
