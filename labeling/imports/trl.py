"""Rows in TRL's dataset formats: prompts and preference pairs, plain and conversational; rankings of our own.

A pair has its prompt in a column (explicit) or as the common beginning of `chosen` and `rejected` (implicit).
Plain text becomes one turn of the user and one of the assistant. An implicit plain prompt ends at the last
space that both texts share, so that no word is cut; dialogues in the manner of Anthropic's HH
("\\n\\nHuman: ...\\n\\nAssistant: ...") become turns.

A pair without further columns gets strength 2 ("better"), the middle that claims neither little nor much. A
`margin` is read as Llama 2 wrote it (0, 1, 2, 3 for strengths 1 to 4), rounded, everything beyond 3 as 4. A
`strength` (0 tie .. 4), as in our own exports, goes before it.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from labeling.imports.items import Comparison, Item, Ranking, RefusedRow, Reply, dense, shown
from labeling.models.prompts import Message
from labeling.prompts import InvalidPrompt, canonical, text_problem

DEFAULT_STRENGTH = 2
MOST_COMPLETIONS = 100
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def read_prompt(row: dict[str, Any]) -> Item:
    """A row with `prompt` (text or messages) or `messages`."""
    prompt = row.get("prompt", row.get("messages"))
    if prompt is None:
        raise RefusedRow("no prompt", "there is neither `prompt` nor `messages`")
    return Item(prompt=conversation(prompt))


def read_pair(row: dict[str, Any]) -> Item:
    """A row with `chosen` and `rejected`, with or without `prompt`."""
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise RefusedRow(f"no {column} completion", f"`{column}` is missing")
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None:
        prompt = conversation(row["prompt"])
        texts = [reply_text(chosen, prompt, "chosen"), reply_text(rejected, prompt, "rejected")]
    else:
        prompt, texts = _implicit(chosen, rejected)
    if texts[0] == texts[1]:
        raise RefusedRow("chosen and rejected are the same", "`chosen` and `rejected` are the same text")
    return Item(
        prompt=prompt,
        replies=tuple(Reply(text=text) for text in texts),
        judgement=Comparison(strength=_strength(row)),
    )


def read_ranking(row: dict[str, Any]) -> Item:
    """A row with `prompt`, `completions` and `ranks`: 1 is best, equal is a tie, null is not ranked."""
    completions, ranks = row.get("completions"), row.get("ranks")
    if row.get("prompt") is None:
        raise RefusedRow("no prompt", "`prompt` is missing")
    if not isinstance(completions, list) or not isinstance(ranks, list) or len(completions) != len(ranks):
        raise RefusedRow("bad ranking", "`completions` and `ranks` must be lists of the same length")
    if not 2 <= len(completions) <= MOST_COMPLETIONS:
        raise RefusedRow("bad ranking", f"{len(completions)} completions; wanted are 2 to {MOST_COMPLETIONS}")
    for rank in ranks:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
            raise RefusedRow("bad ranking", f"the rank {shown(rank)} is no whole number")
    if sum(rank is not None for rank in ranks) < 2:
        raise RefusedRow("bad ranking", "fewer than two completions are ranked")
    prompt = conversation(row["prompt"])
    texts = [reply_text(c, prompt, f"completion {n}") for n, c in enumerate(completions, start=1)]
    if len(set(texts)) < len(texts):
        raise RefusedRow("bad ranking", "two completions are the same text")
    return Item(
        prompt=prompt,
        replies=tuple(Reply(text=text) for text in texts),
        judgement=Ranking(ranks=dense(ranks)),
    )


def conversation(value: object) -> list[Message]:
    """A prompt as turns: messages as they are, plain text as the user's turn, a dialogue as its turns."""
    if isinstance(value, str) and not text_problem(value):
        turns = _dialogue(value)
        # "Human: ...\n\nAssistant:" asks for the next turn; plain text is what the user says.
        if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
            value = turns[:-1]
        else:
            value = [Message(role="user", content=value)]
    elif isinstance(value, str):
        value = [Message(role="user", content=value)]
    try:
        return canonical(value)
    except InvalidPrompt as error:
        raise RefusedRow("not a prompt", f"prompt: {error}") from None


def reply_problem(text: object) -> str | None:
    """Why a text cannot be an imported completion."""
    if problem := text_problem(text):
        return problem
    return None if str(text).strip() else "is empty"


def reply_text(value: object, prompt: list[Message], name: str) -> str:
    """The text of a completion: plain, or messages with the assistant's turn, after the prompt or alone."""
    if isinstance(value, list):
        turns = _turns(value, name)
        if turns[: len(prompt)] == prompt:
            turns = turns[len(prompt) :]
        value = _only_reply(turns, name)
    if problem := reply_problem(value):
        raise RefusedRow("not a completion", f"`{name}` {problem}")
    return str(value)


def _turns(value: list[Any], name: str) -> list[Message]:
    turns = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RefusedRow("not a completion", f"`{name}`, turn {number} has no `role`")
        if problem := text_problem(message.get("content")):
            raise RefusedRow("not a completion", f"`{name}`, turn {number} {problem}")
        turns.append(Message(role=message["role"], content=message["content"]))
    return turns


def _only_reply(turns: Sequence[Message], name: str) -> str:
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(shown(turn["role"]) for turn in turns[:5]) or "nothing"
        raise RefusedRow(
            "not a completion",
            f"`{name}` must be one turn of the assistant after the prompt; it holds {roles}",
        )
    return turns[0]["content"]


def _implicit(chosen: object, rejected: object) -> tuple[list[Message], list[str]]:
    if isinstance(chosen, str) and isinstance(rejected, str):
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            if problem := text_problem(text):
                raise RefusedRow("not a completion", f"`{name}` {problem}")
        dialogues = [_dialogue(chosen), _dialogue(rejected)]
        if not (dialogues[0] and dialogues[1]):
            return _implicit_plain(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        dialogues = [_turns(chosen, "chosen"), _turns(rejected, "rejected")]
    else:
        raise RefusedRow("not a pair", "`chosen` and `rejected` must both be text or both be messages")
    if dialogues[0] == dialogues[1]:
        raise RefusedRow("chosen and rejected are the same", "`chosen` and `rejected` are the same text")
    shared = 0
    for one, other in zip(*dialogues, strict=False):
        if one != other:
            break
        shared += 1
    if shared == 0:
        raise RefusedRow("no prompt", "there is no `prompt`, and the two conversations begin differently")
    prompt = conversation(dialogues[0][:shared])
    return prompt, [
        reply_text(d[shared:], [], n) for d, n in zip(dialogues, ("chosen", "rejected"), strict=True)
    ]


def _implicit_plain(chosen: str, rejected: str) -> tuple[list[Message], list[str]]:
    if chosen == rejected:
        raise RefusedRow("chosen and rejected are the same", "`chosen` and `rejected` are the same text")
    end = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    # The space before the first word that differs belongs to the completions, as TRL cuts it.
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    prompt = chosen[: max(end - 1, 0)]
    if not prompt.strip():
        raise RefusedRow("no prompt", "there is no `prompt`, and the two texts share no beginning")
    for name, text in (("chosen", chosen[end - 1 :]), ("rejected", rejected[end - 1 :])):
        if not text.strip():
            raise RefusedRow("not a completion", f"`{name}` is empty behind the beginning that both share")
    return conversation(prompt), [chosen[end - 1 :], rejected[end - 1 :]]


def _dialogue(text: str) -> list[Message]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; nothing when the text is none."""
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() != 0 or marks[0][1] != "Human" or len(marks) < 2:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(role=roles[mark[1]], content=text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    ]


def _strength(row: dict[str, Any]) -> int:
    if (strength := _number(row, "strength")) is not None:
        if strength not in (0, 1, 2, 3, 4):
            raise RefusedRow("bad strength", f"`strength` is {shown(row['strength'])}; wanted is 0 to 4")
        return int(strength)
    if (margin := _number(row, "margin")) is not None:
        if margin < 0:
            raise RefusedRow(
                "bad margin", f"`margin` is {shown(row['margin'])}: below zero, `rejected` is better"
            )
        return min(4, math.floor(margin + 0.5) + 1)
    return DEFAULT_STRENGTH


def _number(row: dict[str, Any], column: str) -> float | None:
    value = row.get(column)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RefusedRow(f"bad {column}", f"`{column}` is no number: {shown(value)}")
    return number
