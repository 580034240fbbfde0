"""What an import read, took in and refused, and why."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from labeling.imports.items import RefusedRow

# Refused rows that are named one by one; beyond them only the counts grow.
LISTED = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an import is: bytes while reading, prompts with what belongs to them while storing."""

    phase: Literal["reading", "storing"]
    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    line: int
    reason: str
    detail: str


@dataclass(kw_only=True)
class Tally:
    """Of one kind of thing: made by this import, or there before it."""

    created: int = 0
    known: int = 0


@dataclass(kw_only=True)
class ImportReport:
    name: str
    form: str = ""
    stored: bool = False
    rows: int = 0  # read; blank lines are none
    accepted: int = 0
    refused: int = 0
    refused_by_reason: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    prompts: Tally = field(default_factory=Tally)
    completions: Tally = field(default_factory=Tally)
    comparisons: Tally = field(default_factory=Tally)
    rankings: Tally = field(default_factory=Tally)
    examples: Tally = field(default_factory=Tally)
    repeated: int = 0  # prompts, judgements or examples that stand in the file more than once
    notes: Counter[str] = field(default_factory=Counter)  # what did not become a judgement, and the like
    round: int | None = None  # primary key of the closed round that holds the judgements
    collection: int | None = None  # primary key of the collection that holds the examples
    seconds: float = 0

    @property
    def judgements(self) -> Tally:
        return self.comparisons if self.comparisons.created or self.comparisons.known else self.rankings

    @property
    def created(self) -> int:
        tallies = (self.prompts, self.completions, self.comparisons, self.rankings, self.examples)
        return sum(tally.created for tally in tallies)

    def refuse(self, line: int, problem: RefusedRow) -> None:
        self.refused += 1
        self.refused_by_reason[problem.reason] += 1
        if len(self.refusals) < LISTED:
            self.refusals.append(Refusal(line=line, reason=problem.reason, detail=problem.detail))

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "refused_by_reason": dict(self.refused_by_reason.most_common()),
            "notes": {note: count for note, count in self.notes.items() if count},
        }


def count(tally: Tally, *, known: bool) -> None:
    if known:
        tally.known += 1
    else:
        tally.created += 1
