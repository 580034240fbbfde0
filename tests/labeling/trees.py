"""A few Open-Assistant trees, written for tests."""

from itertools import count
from typing import Any

_ids = count(1)


def asked(text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return _message("prompter", text, replies, more)


def answered(text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return _message("assistant", text, replies, more)


def _message(role: str, text: str, replies: tuple[Any, ...], more: dict[str, Any]) -> dict[str, Any]:
    return {
        "message_id": f"m{next(_ids)}",
        "text": text,
        "role": role,
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "replies": list(replies),
        **more,
    }


def tree(prompt: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt}
