"""What a file is read into, whatever its form: a prompt, completions, at most one judgement; or a text."""

from dataclasses import dataclass, field

from labeling.models.prompts import Message


class UnreadableFile(Exception):
    """Nothing can be read from this file: not text, empty, too large, a form nobody knows."""


class RefusedRow(Exception):
    """One row cannot come in. `reason` is shared by all rows of its kind, `detail` is about this one."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The first of two completions is preferred by this strength, 1 to 4; 0 is a tie."""

    strength: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """A rank for each completion, from 1 without gaps, equal = tie; None is not ranked."""

    ranks: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """What an item is that compares nothing. `kind` is of labeling.models.Collection."""

    kind: str
    good: bool | None = None  # of a single judgement
    text: str = ""  # of a text, which has no prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    text: str
    source: str = ""  # its id in the file, where it has one


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    prompt: list[Message]
    replies: tuple[Reply, ...] = ()
    judgement: Comparison | Ranking | None = None
    example: Example | None = None
    line: int = field(default=0)


def dense(ranks: list[int | None]) -> tuple[int | None, ...]:
    """Ranks from 1 without gaps.

    >>> dense([4, 0, None, 4])
    (2, 1, None, 2)
    """
    places = {rank: place for place, rank in enumerate(sorted({r for r in ranks if r is not None}), start=1)}
    return tuple(None if rank is None else places[rank] for rank in ranks)


def shown(value: object) -> str:
    """A value from a file as it may stand in a message: short, on one line, nothing invisible."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
