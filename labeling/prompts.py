"""The only writer of prompts and completions: canonical form, side of the split, rendered HTML.

A prompt is a list of messages whose last turn is the user's. Its digest is over the canonical form, so the
same conversation is one prompt however often it comes in. The side of the split follows from the words of
the first user's turn: a prompt keeps its side for ever, and neither the later turns of a conversation nor the
same question with other blanks, capitals or system turn stand on the other side.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from labeling.models import Completion, Project, Prompt
from labeling.models.prompts import Message
from labeling.rendering import render_markdown

ROLES = ("system", "user", "assistant")
# One turn, prompt or completion: about 50,000 tokens. Longer text cannot be judged on a page nor trained on.
MAX_CHARACTERS = 200_000
MAX_TURNS = 200
# SQLite binds at most 32,766 values in one statement; a prompt has seven columns.
BATCH = 1000


class InvalidPrompt(ValueError):
    """A conversation that is no prompt. The message says why."""


class InvalidCompletion(ValueError):
    """A text that is no completion. The message says why."""


@dataclass(frozen=True, kw_only=True)
class NewCompletion:
    prompt_id: int
    policy_id: int
    text: str
    sampling: dict[str, Any] = field(default_factory=dict)
    html: str | None = None  # what labeling.rendering made of the text; None: not rendered yet


def text_problem(text: object) -> str | None:
    """Why a text can be neither stored nor judged; None when it can."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not text"
    if len(text) > MAX_CHARACTERS:
        return f"has {len(text):,} characters; at most {MAX_CHARACTERS:,} are accepted"
    if "\0" in text:
        return f"has a NUL character at position {text.index(chr(0))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half a surrogate pair at position {error.start}"
    return None


def canonical(messages: object) -> list[Message]:
    """Check a conversation and return it with `role` and `content` alone; content is kept exactly."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidPrompt("a prompt is a list of messages, and not an empty one")
    if len(messages) > MAX_TURNS:
        raise InvalidPrompt(f"has {len(messages):,} turns; at most {MAX_TURNS} are accepted")
    turns = [_canonical_turn(number, message) for number, message in enumerate(messages, start=1)]
    if turns[-1]["role"] != "user":
        raise InvalidPrompt(f"the last turn is the {turns[-1]['role']}'s; it must be the user's")
    return turns


def _canonical_turn(number: int, message: object) -> Message:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise InvalidPrompt(f"turn {number} is not an object with `role` and `content`")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise InvalidPrompt(f"turn {number} has the role {str(role)[:40]!r}; known are {', '.join(ROLES)}")
    if problem := text_problem(content):
        raise InvalidPrompt(f"turn {number} {problem}")
    if not content.strip():
        raise InvalidPrompt(f"turn {number} is empty")
    return Message(role=role, content=content)


def digest_of(messages: Sequence[Message]) -> str:
    """sha256 of the messages as canonical JSON."""
    plain = [{"content": m["content"], "role": m["role"]} for m in messages]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def split_of(messages: Sequence[Message], test_percent: int) -> str:
    """Side of the split for a conversation: for ever the same, whatever comes in before or after it."""
    digest = hashlib.sha256(question_of(messages).encode()).hexdigest()
    return Prompt.Split.TEST if int(digest[:15], 16) % 100 < test_percent else Prompt.Split.TRAIN


def question_of(messages: Sequence[Message]) -> str:
    """The first user's turn, as far as the split is concerned: letters that look the same are the same.

    >>> question_of([{"role": "user", "content": " What\\n is IT?"}])
    'what is it?'
    """
    first = next(message["content"] for message in messages if message["role"] == "user")
    return " ".join(unicodedata.normalize("NFKC", first).casefold().split())


def add_prompts(
    *,
    project: Project,
    conversations: Sequence[Sequence[Message]],
    html: Mapping[str, list[str]] | None = None,
) -> list[Prompt]:
    """Get or create the prompt of each conversation, in order; equal conversations give the same prompt.

    `html` holds turns that are rendered already, by digest.
    """
    turns = [canonical(conversation) for conversation in conversations]
    digests = [digest_of(messages) for messages in turns]
    found = _stored(project, dict.fromkeys(digests))
    # Rendering is slow: before the transaction, which on SQLite keeps every other writer waiting.
    new = {
        digest: _new_prompt(project, digest, messages, (html or {}).get(digest))
        for digest, messages in zip(digests, turns, strict=True)
        if digest not in found
    }
    with transaction.atomic():
        # Another process may store the same prompt in between: then its row counts.
        Prompt.objects.bulk_create(list(new.values()), batch_size=BATCH, ignore_conflicts=True)
        found |= _stored(project, new)
    return [found[digest] for digest in digests]


def _stored(project: Project, digests: Iterable[str]) -> dict[str, Prompt]:
    stored: dict[str, Prompt] = {}
    wanted = list(digests)
    for start in range(0, len(wanted), BATCH):
        rows = Prompt.objects.filter(project=project, digest__in=wanted[start : start + BATCH])
        stored.update((prompt.digest, prompt) for prompt in rows)
    return stored


def _new_prompt(project: Project, digest: str, messages: list[Message], html: list[str] | None) -> Prompt:
    return Prompt(
        project=project,
        messages=messages,
        html=html or [render_markdown(message["content"]) for message in messages],
        digest=digest,
        split=split_of(messages, project.test_percent),
    )


def add_completions(rows: Iterable[NewCompletion]) -> list[Completion]:
    """Store completions, in order. All or none: a text that cannot be stored refuses the whole call."""
    completions = [_new_completion(row) for row in rows]
    with transaction.atomic():
        return Completion.objects.bulk_create(completions, batch_size=BATCH)


def _new_completion(row: NewCompletion) -> Completion:
    if problem := text_problem(row.text):
        raise InvalidCompletion(f"the completion for prompt {row.prompt_id} {problem}")
    return Completion(
        prompt_id=row.prompt_id,
        policy_id=row.policy_id,
        text=row.text,
        html=render_markdown(row.text) if row.html is None else row.html,
        sampling=row.sampling,
    )
