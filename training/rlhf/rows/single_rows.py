"""Rows that hold one completion or none: ratings, single judgements, demonstrations, prompts and texts.

What people said of a completion by itself trains reward models (ratings), KTO (good or bad) and SFT
(demonstrations); prompts alone are what online methods write to, and texts are for continued pretraining.
Standard library only.
"""

from dataclasses import dataclass
from pathlib import Path

from training.rlhf.rows.door import Message, Place, messages_of, number_of, rows_in, weight_of


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A row of `prompts`."""

    line: int
    prompt: list[Message]
    table: str = "prompts"

    def conversations(self) -> list[list[Message]]:
        return [self.prompt]


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """A row of `texts`: no conversation, and read in stretches of any length, so that none is too long."""

    line: int
    text: str
    table: str = "texts"

    @property
    def prompt(self) -> list[Message]:
        """What may not be on both sides of a split."""
        return [{"role": "text", "content": self.text}]

    def conversations(self) -> list[list[Message]]:
        return []


@dataclass(frozen=True, kw_only=True)
class CompletionRow:
    """A completion after its prompt."""

    table: str
    line: int
    prompt: list[Message]
    completion: list[Message]
    weight: float = 1.0

    def conversations(self) -> list[list[Message]]:
        return [[*self.prompt, *self.completion]]


@dataclass(frozen=True, kw_only=True)
class Demonstration(CompletionRow):
    """A row of `demonstrations`: a completion to imitate."""

    table: str = "demonstrations"


@dataclass(frozen=True, kw_only=True)
class Rating(CompletionRow):
    """A row of `ratings`: how one rater judged it by one criterion, on the protocol's scale."""

    rating: float
    criterion: str = ""
    rater: int | None = None  # a number, not a name
    table: str = "ratings"


@dataclass(frozen=True, kw_only=True)
class Unpaired(CompletionRow):
    """A row of `unpaired`: people found it good (True) or not."""

    label: bool
    table: str = "unpaired"


def read_prompts(path: Path) -> list[PromptRow]:
    """Raises Refused, with file and line, for the first row that is not one; so do the others."""
    return [
        PromptRow(line=line, prompt=messages_of(row, "prompt", Place(path, line)))
        for line, row in rows_in(path)
    ]


def read_texts(path: Path) -> list[TextRow]:
    found = []
    for line, row in rows_in(path):
        place, text = Place(path, line), row.get("text")
        place.check(isinstance(text, str) and bool(text.strip()), "text: a text with at least one letter.")
        found.append(TextRow(line=line, text=str(text)))
    return found


def read_demonstrations(path: Path) -> list[Demonstration]:
    found = []
    for line, row in rows_in(path):
        place = Place(path, line)
        prompt, completion = (messages_of(row, name, place) for name in ("prompt", "completion"))
        found.append(
            Demonstration(line=line, prompt=prompt, completion=completion, weight=weight_of(row, place))
        )
    return found


def read_ratings(path: Path) -> list[Rating]:
    found = []
    for line, row in rows_in(path):
        place = Place(path, line)
        place.check("rating" in row, "The column rating is missing.")
        criterion = row.get("criterion", "")
        place.check(isinstance(criterion, str), f"criterion is {criterion!r}: a text.")
        rater = row.get("rater")
        place.check(rater is None or isinstance(rater, int), f"rater is {rater!r}: a whole number.")
        prompt, completion = (messages_of(row, name, place) for name in ("prompt", "completion"))
        found.append(
            Rating(
                line=line,
                prompt=prompt,
                completion=completion,
                rating=number_of(row, "rating", place, default=0.0),
                criterion=criterion,
                rater=rater,
                weight=weight_of(row, place),
            )
        )
    return found


def read_unpaired(path: Path) -> list[Unpaired]:
    found = []
    for line, row in rows_in(path):
        place = Place(path, line)
        label = row.get("label")
        place.check(isinstance(label, bool), f"label is {label!r}: true or false.")
        prompt, completion = (messages_of(row, name, place) for name in ("prompt", "completion"))
        found.append(
            Unpaired(
                line=line,
                prompt=prompt,
                completion=completion,
                label=bool(label),
                weight=weight_of(row, place),
            )
        )
    return found
