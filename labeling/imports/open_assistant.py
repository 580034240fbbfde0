"""Open-Assistant's conversation trees: one JSON object a line, from a first prompt down to every reply.

Each message of a prompter becomes a prompt with the turns before it, and the assistants' replies to it become
its completions. Two or more replies with a `rank` (0 is best) are one ranking. A reply without a rank beside
ranked ones stands in the same task and is not ranked; replies of a set without ranks, and single replies, are
completions that nobody judged. Deleted messages, and those that failed their review, are left out with all
that hangs below them. One fault refuses its whole tree.

In ../shared/data/oasst_en_100_tree.jsonl that makes 480 prompts, 687 completions and 212 rankings (641 ranked
replies and one unranked beside them) of 1,167 messages; 40 single replies and 5 in two unranked sets stay
unjudged, and 226 prompts wait for a first completion.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from labeling.imports.items import Item, Ranking, RefusedRow, Reply, dense, shown
from labeling.imports.trl import conversation, reply_problem
from labeling.models.prompts import Message
from labeling.prompts import text_problem

_ROLES = {"prompter": "user", "assistant": "assistant"}

DELETED = "messages left out: deleted, or below a deleted one"
FAILED_REVIEW = "messages left out: failed their review, or below one that did"
SAME_TEXT = "replies left out: the same text as a better sibling"
SINGLE = "single replies: completions that nobody ranked"
UNRANKED_SET = "replies in sets without ranks: completions that nobody ranked"
UNRANKED_REPLY = "replies without a rank beside ranked ones: in the task, not in its ranking"
NO_REPLY = "prompts without a reply"


def read_tree(tree: dict[str, Any], notes: Counter[str]) -> list[Item]:
    """Every prompt of a tree, from the top down. `notes` counts what did not become a ranking, and why."""
    root = tree.get("prompt")
    if not isinstance(root, dict):
        raise RefusedRow("not a tree", "`prompt` is no message: a tree has its first message there")
    counts: Counter[str] = Counter()
    items: list[Item] = []
    # A stack of our own: no depth of the file can exhaust Python's.
    ahead: list[tuple[dict[str, Any], list[Message]]] = [
        (message, []) for message in _kept([_checked(root, "prompter")], counts)
    ]
    while ahead:
        message, earlier = ahead.pop()
        prompt = conversation([*earlier, _turn(message)])
        replies = _kept([_checked(reply, "assistant") for reply in _replies(message)], counts)
        items.append(_item(prompt, replies, counts))
        further = [
            (question, [*prompt, _turn(reply)])
            for reply in replies
            for question in _kept([_checked(q, "prompter") for q in _replies(reply)], counts)
        ]
        ahead.extend(reversed(further))
    notes.update(counts)
    return items


def _item(prompt: list[Message], replies: list[dict[str, Any]], counts: Counter[str]) -> Item:
    replies = _distinct(replies, counts)
    ranks = [reply.get("rank") for reply in replies]
    ranked = sum(rank is not None for rank in ranks)
    if ranked >= 2:
        counts[UNRANKED_REPLY] += len(ranks) - ranked
    elif not replies:
        counts[NO_REPLY] += 1
    else:
        counts[SINGLE if len(replies) == 1 else UNRANKED_SET] += len(replies)
    return Item(
        prompt=prompt,
        replies=tuple(Reply(text=r["text"], source=_id(r)) for r in replies),
        judgement=Ranking(ranks=dense(ranks)) if ranked >= 2 else None,
    )


def _distinct(replies: list[dict[str, Any]], counts: Counter[str]) -> list[dict[str, Any]]:
    """One reply for each text: the best ranked. Two equal texts cannot be told apart by a rater."""
    best: dict[str, dict[str, Any]] = {}
    for reply in replies:
        other = best.get(reply["text"])
        if other is None or _place(reply) < _place(other):
            best[reply["text"]] = reply
    counts[SAME_TEXT] += len(replies) - len(best)
    return [reply for reply in replies if best[reply["text"]] is reply]


def _place(reply: dict[str, Any]) -> float:
    rank = reply.get("rank")
    return float("inf") if rank is None else rank


def _kept(messages: list[dict[str, Any]], counts: Counter[str]) -> list[dict[str, Any]]:
    kept = []
    for message in messages:
        if message.get("deleted") is True:
            counts[DELETED] += _size(message)
        elif message.get("review_result") is False:
            counts[FAILED_REVIEW] += _size(message)
        else:
            kept.append(message)
    return kept


def _size(message: dict[str, Any]) -> int:
    return sum(1 for _ in _below(message))


def _below(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ahead = [message]
    while ahead:
        one = ahead.pop()
        yield one
        replies = one.get("replies")
        ahead.extend(r for r in (replies if isinstance(replies, list) else []) if isinstance(r, dict))


def _replies(message: dict[str, Any]) -> list[Any]:
    replies = message.get("replies")
    if replies is None:
        return []
    if not isinstance(replies, list):
        raise RefusedRow("bad tree", f"{_name(message)}: `replies` is no list")
    return replies


def _turn(message: dict[str, Any]) -> Message:
    return Message(role=_ROLES[message["role"]], content=message["text"])


def _checked(message: object, role: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RefusedRow("bad tree", f"a message is no object: {shown(message)}")
    if message.get("role") != role:
        found = shown(message.get("role"))
        raise RefusedRow("bad tree", f"{_name(message)} has the role {found}; {role!r} is expected here")
    if message.get("deleted") is True or message.get("review_result") is False:
        return message  # left out: what it says does not matter
    if problem := reply_problem(message.get("text")):
        raise RefusedRow("bad tree", f"{_name(message)}: `text` {problem}")
    rank = message.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        raise RefusedRow("bad tree", f"{_name(message)}: the rank {shown(rank)} is no whole number from 0")
    return message


def _id(message: dict[str, Any]) -> str:
    """Nobody relies on it, so a strange one refuses no tree."""
    found = message.get("message_id")
    return found[:64] if isinstance(found, str) and text_problem(found) is None else ""


def _name(message: dict[str, Any]) -> str:
    return f"message {shown(message.get('message_id', 'without an id'))}"
