"""The constitution of a project: the starting one, what is asked by each principle, and its versions.

A principle needs only its text. The three requests made from it can be replaced by a manager's own words, one
by one. `in_full` gives all of them as runs and datasets keep them.
"""

from collections.abc import Sequence
from typing import TypedDict

from django.db import transaction

from labeling.models import Constitution, Project
from labeling.models.constitutions import Principle
from labeling.prompts import text_problem

MOST = 64  # principles
LONGEST = 2_000  # characters of one text

CRITIQUE = (
    "Criticise your last answer by this principle: “{text}” Say in a few sentences where the answer falls "
    "short of it, or that it does not."
)
REVISION = (
    "Write your answer again so that it follows this principle: “{text}” Keep what was good, and reply with "
    "the new answer alone."
)
COMPARISON = "Which answer follows this principle better? “{text}”"
MADE_FROM_TEXT = {"critique": CRITIQUE, "revision": REVISION, "comparison": COMPARISON}

STARTING: tuple[str, ...] = (
    "Answer the question that was asked, so that the person can act on it.",
    "Say only what you have reason to believe; where you are not sure, say so plainly.",
    "Be kind: do not belittle, mock or lecture the person or anybody else.",
    "Do not help to hurt people, animals or property; say why not, and offer what can be done safely.",
    "Treat people alike, whoever they are: no prejudice about origin, sex, faith, age, body or means.",
    "Leave private matters of other people private.",
    "Do not pretend to be a person, to have a body, or to remember what was never said here.",
    "Be as short as the matter allows, and choose plain words.",
)


class InvalidConstitution(ValueError):
    """Principles that cannot be kept. The message says which and why."""


class FullPrinciple(TypedDict):
    text: str
    critique: str
    revision: str
    comparison: str


def starting() -> list[Principle]:
    """Principles to begin with, in words of our own."""
    return [Principle(text=text) for text in STARTING]


def in_full(principle: Principle) -> FullPrinciple:
    """With everything that is asked by it.

    >>> in_full({"text": "Be kind.", "comparison": "Which is kinder?"})["comparison"]
    'Which is kinder?'
    >>> in_full({"text": "Be kind."})["comparison"]
    'Which answer follows this principle better? “Be kind.”'
    """
    text = principle["text"]
    return FullPrinciple(
        text=text,
        critique=principle.get("critique") or CRITIQUE.replace("{text}", text),
        revision=principle.get("revision") or REVISION.replace("{text}", text),
        comparison=principle.get("comparison") or COMPARISON.replace("{text}", text),
    )


def checked(principles: Sequence[Principle]) -> list[Principle]:
    """Principles without what is empty. Raises InvalidConstitution."""
    kept: list[Principle] = []
    for number, principle in enumerate(principles, start=1):
        words = {name: str(value).strip() for name, value in principle.items() if str(value).strip()}
        if not words:
            continue
        if "text" not in words:
            raise InvalidConstitution(f"Principle {number} has requests but no words of its own.")
        for name, value in words.items():
            if len(value) > LONGEST:
                raise InvalidConstitution(
                    f"Principle {number}: {len(value):,} characters; at most {LONGEST:,} are accepted."
                )
            if problem := text_problem(value):
                raise InvalidConstitution(f"Principle {number}: the {name} {problem}.")
        kept.append(Principle(**words))  # type: ignore[typeddict-item]
    if not kept:
        raise InvalidConstitution("A constitution has at least one principle.")
    if len(kept) > MOST:
        raise InvalidConstitution(f"A constitution has at most {MOST} principles.")
    texts = [principle["text"] for principle in kept]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise InvalidConstitution(f"“{twice[:80]}” stands there twice.")
    return kept


def latest(project: Project) -> Constitution | None:
    return project.constitutions.order_by("-version").first()


@transaction.atomic
def save(*, project: Project, principles: Sequence[Principle], note: str = "") -> Constitution:
    """The project's next version, or its latest one when nothing changed. Raises InvalidConstitution."""
    kept = checked(principles)
    # The lock keeps two managers from taking the same number.
    locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    last = latest(locked)
    if last is not None and last.principles == kept:
        return last
    return Constitution.objects.create(
        project=locked, version=last.version + 1 if last else 1, principles=kept, note=note.strip()
    )
