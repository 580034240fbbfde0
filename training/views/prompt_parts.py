"""A policy's system prompt and examples as its page shows them, and what differs from its parent's."""

import difflib
from dataclasses import dataclass, field

from labeling.models import Policy
from training.prompted import prompt_version

SHOWN = 400  # lines of a difference


@dataclass(frozen=True)
class Change:
    """`kind`: kept, added or removed."""

    kind: str
    text: str


@dataclass(frozen=True)
class Parts:
    system_prompt: str
    examples: list[tuple[str, str]]
    version: str
    changes: list[Change] = field(default_factory=list)  # against the parent; none when it has no parts
    parent: Policy | None = None


def shown_of(policy: Policy) -> Parts | None:
    """None for a policy that nothing stands before."""
    if not policy.is_prompted:
        return None
    parent = policy.parent if policy.parent is not None and policy.parent.is_prompted else None
    changes = changes_between(lines_of(parent), lines_of(policy)) if parent is not None else []
    turns = [str(turn["content"]) for turn in policy.examples]
    return Parts(
        system_prompt=policy.system_prompt,
        examples=list(zip(turns[::2], turns[1::2], strict=False)),
        version=prompt_version(policy),
        changes=changes if any(change.kind != "kept" for change in changes) else [],
        parent=parent,
    )


def lines_of(policy: Policy) -> list[str]:
    """The parts line by line, each turn of an example under its role."""
    lines = policy.system_prompt.splitlines()
    for turn in policy.examples:
        name = "Asked" if turn["role"] == "user" else "Answered"
        first, *rest = str(turn["content"]).splitlines() or [""]
        lines += [f"{name}: {first}", *rest]
    return lines


def changes_between(before: list[str], after: list[str]) -> list[Change]:
    """Line by line, what was removed before what was added.

    >>> [(c.kind, c.text) for c in changes_between(["Be brief.", "Rhyme."], ["Be kind.", "Rhyme."])]
    [('removed', 'Be brief.'), ('added', 'Be kind.'), ('kept', 'Rhyme.')]
    """
    found = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for what, start, end, first, last in matcher.get_opcodes():
        if what == "equal":
            found += [Change("kept", line) for line in before[start:end]]
        else:
            found += [Change("removed", line) for line in before[start:end]]
            found += [Change("added", line) for line in after[first:last]]
    return found[:SHOWN]
