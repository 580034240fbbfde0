"""What a rater sees of a task, and nothing else: no policy, no purpose, no id that tells which is newer.

Everything here comes from rows that labeling.assignment has fetched already: no query runs.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from django.utils.safestring import SafeString, mark_safe

from labeling.blinding import blind_name
from labeling.models import Assignment, Prompt, Protocol
from labeling.rendering import render_markdown

ROLES = {"user": "User", "assistant": "Assistant", "system": "Instruction"}
# By the strength stored with a label, 1 to 4.
STRENGTHS = {1: "slightly", 2: "somewhat", 3: "clearly", 4: "far"}


@dataclass(frozen=True)
class Turn:
    role: str
    speaker: str
    html: SafeString


@dataclass(frozen=True)
class Item:
    """A completion in its place on this screen."""

    id: int
    name: str  # what the page calls it: an id would tell who wrote it
    letter: str
    html: SafeString
    rank: int | None


@dataclass(frozen=True)
class Step:
    """One answer of the comparison's scale."""

    value: str
    name: str
    strength: int
    key: int
    chosen: bool


@dataclass(frozen=True)
class Criterion:
    key: str
    name: str
    help: str
    scores: list[tuple[int, bool]]  # a number, and whether it is chosen


@dataclass(frozen=True)
class Screen:
    assignment_id: int
    key: UUID
    earlier: list[Turn]
    latest: Turn  # what the completions answer
    items: list[Item]
    chosen: str  # outcome of a comparison that is shown again
    sides: list[tuple[Item, list[Step]]]
    criteria: list[Criterion]


def screen_of(assignment: Assignment, protocol: Protocol, answer: dict[str, Any]) -> Screen:
    """`answer` is a label's value that is shown again, or empty."""
    items = _items(assignment, answer.get("ranks", {}))
    *earlier, latest = _turns(assignment.task.prompt)
    return Screen(
        assignment_id=assignment.pk,
        key=uuid4(),
        earlier=earlier,
        latest=latest,
        items=items,
        chosen=answer.get("outcome", ""),
        sides=_sides(items, protocol, answer) if protocol.kind == Protocol.Kind.COMPARISON else [],
        criteria=_criteria(protocol, answer) if protocol.kind == Protocol.Kind.RATING else [],
    )


def _turns(prompt: Prompt) -> list[Turn]:
    html = prompt.html
    if len(html) != len(prompt.messages):  # written by hand, not by labeling.prompts
        html = [render_markdown(message["content"]) for message in prompt.messages]
    return [
        Turn(message["role"], ROLES.get(message["role"], "Other"), mark_safe(safe))  # noqa: S308
        for message, safe in zip(prompt.messages, html, strict=True)
    ]


def _items(assignment: Assignment, ranks: dict[str, int]) -> list[Item]:
    completions = {completion.pk: completion for completion in assignment.task.completions.all()}
    return [
        Item(
            id=pk,
            name=blind_name(pk),
            letter=chr(ord("A") + place) if place < 26 else str(place + 1),
            html=mark_safe(completions[pk].html or render_markdown(completions[pk].text)),  # noqa: S308
            rank=ranks.get(str(pk)),
        )
        for place, pk in enumerate(assignment.shown)
    ]


def _sides(items: list[Item], protocol: Protocol, answer: dict[str, Any]) -> list[tuple[Item, list[Step]]]:
    """The scale from left to right: keys 1 to 2n, strongest at both ends."""
    most = int(protocol.options.get("strengths", 1))
    chosen = (answer.get("preferred"), answer.get("strength"))
    left, right = items
    steps_left = [(left, strength) for strength in range(most, 0, -1)]
    steps_right = [(right, strength) for strength in range(1, most + 1)]
    steps = [
        Step(
            value=f"{item.name}:{strength}",
            name=_name(strength, most),
            strength=strength,
            key=key,
            chosen=(item.id, strength) == chosen,
        )
        for key, (item, strength) in enumerate(steps_left + steps_right, start=1)
    ]
    return [(left, steps[:most]), (right, steps[most:])]


def _name(strength: int, most: int) -> str:
    return "better" if most == 1 else STRENGTHS.get(strength, str(strength))


def _criteria(protocol: Protocol, answer: dict[str, Any]) -> list[Criterion]:
    options, scores = protocol.options, answer.get("scores", {})
    numbers = range(options["low"], options["high"] + 1)
    return [
        Criterion(
            key=criterion["key"],
            name=criterion["name"],
            help=criterion.get("help", ""),
            scores=[(number, scores.get(criterion["key"]) == number) for number in numbers],
        )
        for criterion in options["criteria"]
    ]
