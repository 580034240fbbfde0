"""What of a policy stands before the user's turn: a system prompt, and examples. Standard library only.

A policy is weights and these parts. Whatever lets it write or learn puts them there by `as_read`: sampling,
training, evaluation, distillation and serving read the same conversation. Raters and reward models read the
prompt without them (`without`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from training.rlhf.method_settings import check

FILE = "prompt_parts.json"  # beside the weights of a policy that is served or leaves the house
MOST_EXAMPLES = 32
Turns = Sequence[Mapping[str, str]]
Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """`examples` are turns, a user's and the answer to it in turn; both parts may be empty."""

    system_prompt: str = ""
    examples: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        check(isinstance(self.system_prompt, str), "prompt_parts.system_prompt: a text")
        check(isinstance(self.examples, tuple), "prompt_parts.examples: a list of turns")
        check(len(self.examples) <= 2 * MOST_EXAMPLES, f"prompt_parts.examples: at most {MOST_EXAMPLES}")
        for number, turn in enumerate(self.examples):
            role = ("user", "assistant")[number % 2]
            whole = isinstance(turn, dict) and set(turn) == {"role", "content"} and turn["role"] == role
            said = turn.get("content") if isinstance(turn, dict) else None
            whole = whole and isinstance(said, str) and bool(said.strip())
            check(whole, f"prompt_parts.examples.{number}: expected a turn of the {role}, with its content")
        check(len(self.examples) % 2 == 0, "prompt_parts.examples: the last one has no answer")

    def __bool__(self) -> bool:
        return bool(self.system_prompt or self.examples)

    @classmethod
    def from_json(cls, data: Any) -> "PromptParts":
        """Raises ConfigError for what is none."""
        check(isinstance(data, dict), "prompt_parts: expected an object")
        unknown = sorted(set(data) - {"system_prompt", "examples"})
        check(not unknown, f"prompt_parts.{unknown[0] if unknown else ''}: no such part")
        examples = data.get("examples", ())
        check(isinstance(examples, list | tuple), "prompt_parts.examples: a list of turns")
        return cls(system_prompt=data.get("system_prompt", ""), examples=tuple(examples))

    def to_json(self) -> dict[str, Any]:
        return {"system_prompt": self.system_prompt, "examples": [dict(turn) for turn in self.examples]}

    @property
    def version(self) -> str:
        """Twelve digits of the sha256 of the parts: what a completion keeps of them. Empty without parts."""
        if not self:
            return ""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


NONE = PromptParts()


def as_read(parts: PromptParts, prompt: Turns) -> list[dict[str, str]]:
    """The conversation as the policy reads it: system prompt, examples, then the prompt.

    A system turn of the prompt's own follows the policy's, in one turn: templates take only one.

    >>> parts = PromptParts(system_prompt="Be brief.", examples=({"role": "user", "content": "Hi"},
    ...                                                           {"role": "assistant", "content": "Hey"}))
    >>> prompt = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Go"}]
    >>> [turn["content"] for turn in as_read(parts, prompt)]
    ['Be brief.\\n\\nRhyme.', 'Hi', 'Hey', 'Go']
    """
    turns = [dict(turn) for turn in prompt]
    own = [turns.pop(0)["content"]] if turns and turns[0]["role"] == "system" else []
    said = [text for text in (parts.system_prompt, *own) if text]
    system = [{"role": "system", "content": "\n\n".join(said)}] if said else []
    return [*system, *(dict(turn) for turn in parts.examples), *turns]


def without(parts: PromptParts, messages: Turns) -> list[dict[str, str]]:
    """The prompt that `as_read` made these messages of: what people and reward models read.

    >>> parts = PromptParts(system_prompt="Be brief.")
    >>> without(parts, as_read(parts, [{"role": "user", "content": "Go"}]))
    [{'role': 'user', 'content': 'Go'}]
    """
    turns = [dict(turn) for turn in messages]
    system = []
    if turns and turns[0]["role"] == "system":
        said = turns.pop(0)["content"].removeprefix(parts.system_prompt)
        said = said.removeprefix("\n\n") if parts.system_prompt else said
        system = [{"role": "system", "content": said}] if said else []
    return [*system, *turns[len(parts.examples) :]]


def under(parts: PromptParts, rows: Iterable[Row]) -> list[Row]:
    """Rows with a `prompt`, each as a policy with these parts reads it."""
    if not parts:
        return list(rows)
    changed: list[Any] = list(rows)
    return [replace(row, prompt=as_read(parts, row.prompt)) for row in changed]


def beside(folder: Path) -> PromptParts:
    """The parts that lie beside weights; none where there is no such file. Raises ConfigError."""
    try:
        return PromptParts.from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return NONE
    except ValueError as error:
        check(False, f"{folder / FILE} cannot be read: {error}")
        raise
