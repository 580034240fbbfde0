"""Runs that write by a constitution, for tests: three principles, and a voice that judges sensibly."""

import json
import re
from collections.abc import Callable
from typing import Any

from tests.training_rlhf.conftest import MakeRun, write_rows
from training.rlhf.run_dir import RunDir

PRINCIPLES = [
    {
        "text": f"Be {word}.",
        "critique": f"Where is it not {word}?",
        "revision": f"Write it again, more {word}.",
        "comparison": f"Which is more {word}?",
    }
    for word in ("kind", "brief", "true")
]


def make_constitutional(make_run: MakeRun, method: str, *, prompts: int = 7, **config: Any) -> RunDir:
    """A run folder with so many prompts to train on and two held out."""
    run_dir = make_run(method, **({"sampling": {"max_new_tokens": 8}} | config))
    for split, first, count in (("train", 0, prompts), ("test", 1000, 2)):
        rows = [{"prompt": [{"role": "user", "content": f"Say {first + n}."}]} for n in range(count)]
        write_rows(run_dir.data / f"prompts.{split}.jsonl", rows)
    write_constitution(run_dir)
    return run_dir


def write_constitution(run_dir: RunDir, principles: list[dict[str, str]] = PRINCIPLES) -> None:
    words = {"version": 3, "principles": principles}
    (run_dir.data / "constitution.json").write_text(json.dumps(words), encoding="utf-8")


def two_texts(body: dict[str, Any]) -> tuple[str, str]:
    """The answers that a judge is asked about."""
    asked = str(body["messages"][0]["content"])
    one, other = (re.search(rf"<answer_{n}>\n(.*?)\n</answer_{n}>", asked, re.S) for n in "ab")
    assert one and other
    return one[1], other[1]


def prefers(word: str) -> Callable[[dict[str, Any]], str]:
    """A sensible voice: the text that says the word more often."""

    def answer(body: dict[str, Any]) -> str:
        if "<answer_a>" not in str(body["messages"][0]["content"]):
            return "A"  # the check asks whether anybody is there
        one, other = (text.count(word) for text in two_texts(body))
        return "TIE" if one == other else "A" if one > other else "B"

    return answer


def prefers_longer(body: dict[str, Any]) -> str:
    """A voice that decides about any two texts of different lengths."""
    if "<answer_a>" not in str(body["messages"][0]["content"]):
        return "A"
    one, other = map(len, two_texts(body))
    return "TIE" if one == other else "A" if one > other else "B"
