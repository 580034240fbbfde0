"""Rows that compare nothing: demonstrations, completions called good or not, texts of a field.

A demonstration is `prompt` and `completion`, as text or as messages, or `messages` that end with the
assistant's turn. A single judgement is the same with a `label`: true is good. In CSV, true, yes, good and 1
are true.
"""

from typing import Any

from labeling.imports.items import Example, Item, RefusedRow, Reply, shown
from labeling.imports.trl import conversation, reply_text
from labeling.models import Collection
from labeling.models.prompts import Message
from labeling.prompts import text_problem

Kind = Collection.Kind
WORDS = {"true": True, "yes": True, "good": True, "1": True,
         "false": False, "no": False, "bad": False, "0": False}  # fmt: skip


def read_demonstration(row: dict[str, Any]) -> Item:
    """A completion to imitate."""
    prompt, text = _answered(row)
    return Item(prompt=prompt, replies=(Reply(text=text),), example=Example(kind=Kind.DEMONSTRATIONS))


def read_single_judgement(row: dict[str, Any], *, words: bool = False) -> Item:
    """A completion that somebody called good, or not. `words`: cells of CSV, which are text, count too."""
    label = row.get("label")
    if words and isinstance(label, str):
        label = WORDS.get(label.strip().lower(), label)
    if label is None:
        raise RefusedRow("no label", "`label` is missing")
    if not isinstance(label, bool):
        raise RefusedRow("bad label", f"`label` is {shown(label)}; wanted is true or false")
    prompt, text = _answered(row)
    example = Example(kind=Kind.UNPAIRED, good=label)
    return Item(prompt=prompt, replies=(Reply(text=text),), example=example)


def read_text(row: dict[str, Any]) -> Item:
    """A text of a field, without a prompt."""
    text = row.get("text")
    if text is None:
        raise RefusedRow("no text", "`text` is missing")
    if problem := text_problem(text):
        raise RefusedRow("not a text", f"`text` {problem}")
    if not text.strip():
        raise RefusedRow("not a text", "`text` is empty")
    return Item(prompt=[], example=Example(kind=Kind.TEXTS, text=text))


def _answered(row: dict[str, Any]) -> tuple[list[Message], str]:
    """Prompt and completion of a row."""
    if row.get("prompt") is not None:
        if row.get("completion") is None:
            raise RefusedRow("no completion", "`completion` is missing")
        prompt = conversation(row["prompt"])
        return prompt, reply_text(row["completion"], prompt, "completion")
    messages = row.get("messages")
    if messages is None:
        raise RefusedRow("no prompt", "there is neither `prompt` with `completion` nor `messages`")
    if not isinstance(messages, list) or len(messages) < 2:
        raise RefusedRow("not a conversation", "`messages` must hold a prompt and a turn of the assistant")
    prompt = conversation(messages[:-1])
    return prompt, reply_text(messages[-1:], [], "messages")
