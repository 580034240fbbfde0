"""Rows of a preference dataset, checked at the door, as what a reward model or DPO learns from.

A pair and a ranking are the same thing here: an `Element`, one prompt with completions and what people said
about each two of them. Rows that are too long are dropped and counted, never cut: a completion that loses its
EOS teaches a model not to stop. Standard library only; tokens come from training.rlhf.rendering.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from training.rlhf.rows.door import Message, Place, messages_of, number_of, rows_in, turns_of, weight_of
from training.rlhf.run_dir import RunDir

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


class Row(Protocol):
    """A row of any table: what a batch counts as one."""

    @property
    def table(self) -> str: ...

    @property
    def line(self) -> int: ...

    @property
    def prompt(self) -> list[Message]: ...

    def conversations(self) -> list[list[Message]]:
        """All that is read of it at once; none may be over the limit of a run. A text has none."""
        ...


R = TypeVar("R", bound=Row)


class Comparison(NamedTuple):
    """Completion number `chosen` was preferred to number `rejected`, with probability `p`; a tie is 0.5."""

    chosen: int
    rejected: int
    margin: float
    weight: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Element:
    """One row of a table: what a batch counts as one."""

    table: Literal["pairs", "rankings"]
    line: int
    prompt: list[Message]
    completions: list[list[Message]]
    comparisons: list[Comparison]
    strength: int | None = None

    @property
    def is_all_ties(self) -> bool:
        return all(comparison.p == 0.5 for comparison in self.comparisons)

    def conversation(self, number: int) -> list[Message]:
        return [*self.prompt, *self.completions[number]]

    def conversations(self) -> list[list[Message]]:
        return [self.conversation(number) for number in range(len(self.completions))]


def read_pairs(path: Path) -> list[Element]:
    """Rows of `pairs`. Raises Refused, with file and line, for the first row that is not one."""
    return [_pair(row, Place(path, line)) for line, row in rows_in(path)]


def read_rankings(path: Path) -> list[Element]:
    """Rows of `rankings`, each with its C(K, 2) comparisons, each at weight 1/C(K, 2)."""
    return [_ranking(row, Place(path, line)) for line, row in rows_in(path)]


def read_for_dpo(run_dir: RunDir, split: Split) -> list[Element]:
    return read_pairs(run_dir.data / f"pairs.{split}.jsonl")


def read_for_reward_model(run_dir: RunDir, split: Split) -> list[Element]:
    """Rankings, and the pairs that no ranking says already: a dataset lists its pairs as pairs too."""
    rankings = read_rankings(run_dir.data / f"rankings.{split}.jsonl")
    return [*without_pairs_of(rankings, read_pairs(run_dir.data / f"pairs.{split}.jsonl")), *rankings]


def without_pairs_of(rankings: Iterable[Element], pairs: Iterable[Element]) -> list[Element]:
    """Leave out the pairs that come from rankings.

    A dataset has one pair for each two that a ranking compares; for several raters of one task, whose
    rankings share a weight of 1, their common verdict is one pair.
    """
    said: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        weight = sum(one.weight for one in ranking.comparisons)
        for one in ranking.comparisons:
            said[_unordered(ranking, one.chosen, one.rejected)] += weight
    kept = []
    for pair in pairs:
        key = _unordered(pair, 0, 1)
        if said[key] > 1e-6:
            said[key] -= 1
        else:
            kept.append(pair)
    return kept


def _unordered(element: Element, one: int, other: int) -> str:
    texts = sorted(json.dumps(element.completions[number], sort_keys=True) for number in (one, other))
    return json.dumps([element.prompt, *texts], sort_keys=True)


@dataclass(frozen=True)
class Fitting(Generic[R]):
    """What is left of a table once rows over the limit are gone."""

    elements: list[R]
    dropped: int
    longest: int  # tokens of the longest conversation, dropped ones included


def drop_too_long(
    elements: Iterable[R], *, limit: int, count_tokens: Callable[[list[Message]], int]
) -> Fitting[R]:
    """Keep the rows whose every conversation has at most `limit` tokens."""
    kept, dropped, longest = [], 0, 0
    for element in elements:
        length = max(map(count_tokens, element.conversations()), default=0)
        longest = max(longest, length)
        if length <= limit:
            kept.append(element)
        else:
            dropped += 1
    return Fitting(kept, dropped, longest)


def _pair(row: dict[str, Any], place: Place) -> Element:
    strength = row.get("strength")
    place.check(strength is None or isinstance(strength, int), f"strength is {strength!r}: a whole number.")
    p = number_of(row, "p", place, default=1.0)
    place.check(0 <= p <= 1, f"p is {p}: a probability is from 0 to 1.")
    return Element(
        table="pairs",
        line=place.line,
        prompt=messages_of(row, "prompt", place),
        completions=[messages_of(row, "chosen", place), messages_of(row, "rejected", place)],
        comparisons=[
            Comparison(
                chosen=0,
                rejected=1,
                margin=number_of(row, "margin", place, default=0.0),
                weight=weight_of(row, place),
                p=p,
            )
        ],
        strength=strength,
    )


def _ranking(row: dict[str, Any], place: Place) -> Element:
    completions = row.get("completions")
    ranks = row.get("ranks")
    place.check(
        isinstance(completions, list) and len(completions) >= 2, "completions: a list of two or more."
    )
    place.check(
        isinstance(ranks, list) and all(isinstance(rank, int) for rank in ranks),
        "ranks: a list of whole numbers, 1 for the best.",
    )
    assert isinstance(completions, list) and isinstance(ranks, list)
    place.check(len(ranks) == len(completions), f"{len(completions)} completions have {len(ranks)} ranks.")
    count = math.comb(len(ranks), 2)
    weight = weight_of(row, place)
    return Element(
        table="rankings",
        line=place.line,
        prompt=messages_of(row, "prompt", place),
        completions=[turns_of(turns, "completions", place) for turns in completions],
        comparisons=[
            Comparison(chosen=better, rejected=other, margin=0.0, weight=weight / count, p=p)
            for better, other, p in ranking_comparisons(ranks)
        ],
    )


def ranking_comparisons(ranks: list[int]) -> list[tuple[int, int, float]]:
    """All C(K, 2) comparisons of a ranking: (number of the better, number of the other, p). Rank 1 is best.

    >>> ranking_comparisons([2, 1, 2])
    [(1, 0, 1.0), (0, 2, 0.5), (1, 2, 1.0)]
    """
    comparisons = []
    for left in range(len(ranks)):
        for right in range(left + 1, len(ranks)):
            better, other = (left, right) if ranks[left] <= ranks[right] else (right, left)
            comparisons.append((better, other, 0.5 if ranks[left] == ranks[right] else 1.0))
    return comparisons
