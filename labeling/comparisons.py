"""From what raters said to what a trainer learns from. Pure: no database, no library.

One task at a time: `aggregate` takes every judgement of the task and a named rule.

    each_label     every label is a row of its own
    majority       one row for each pair: the side that most raters took. No side has more raters than the
                   other side and than the ties: the row is a tie. More than half of the raters say "both
                   bad": no row. Strength is the median of the side that won.
    mean_strength  one row for each pair: the mean of signed strengths (-4 .. 4, tie 0). Its sign names the
                   winner, its size is the strength; exactly 0 is a tie.

The same in every rule:

- A tie is a pair with p = 0.5 (a trainer may use it or leave it); a coin, the same for the same two, says
  which side stands first: a trainer that does not know `p` must not learn "older" from it.
- "Both bad" says nothing about which is better: such a label abstains, and is counted as left out.
- p is the share of raters for `chosen`, a tie counting half. It is never below 0.5: under mean_strength one
  strong voice can outweigh two faint ones, and `chosen` is what the rule chose.
- A ranking is worth a vote of strength 1 on each of its pairs, because it says which is better and not how
  much: margin 0. Each pair weighs 1/C(K,2), so that a ranking of nine does not drown one of two
  (InstructGPT, 2203.02155). Several rankings of a task are never merged: a merged one would say of two
  completions what nobody said who saw them both. Each stays, at weight 1/raters unless the rule is
  each_label, so that a trainer weighs the votes; their pairs go by the rule.
- Ratings are never merged and never become pairs: ratings and rankings of the same items disagree
  (2308.15812), and each row keeps its rater.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations
from math import comb, floor
from statistics import median
from typing import Any, Literal

Kind = Literal["rating", "comparison", "ranking"]
Rule = Literal["each_label", "majority", "mean_strength"]

BOTH_BAD = "both bad"
MOST_SAY_BOTH_BAD = "most raters say both bad"
TOO_FEW_RANKED = "fewer than two ranked"

# Two completions, the lower id first.
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One label. `value` is as in labeling.models.Label; `completions` are those of the task."""

    task: int
    prompt: int
    rater: int
    kind: Kind
    value: Mapping[str, Any]
    completions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    task: int
    prompt: int
    chosen: int
    rejected: int
    strength: int  # 0 tie, 1 slightly .. 4 far better
    margin: float
    p: float  # probability that `chosen` is preferred
    weight: float
    votes: int  # raters behind it


@dataclass(frozen=True, kw_only=True)
class Ranking:
    task: int
    prompt: int
    completions: tuple[int, ...]  # best first
    ranks: tuple[int, ...]  # from 1 without gaps; equal = tie
    weight: float
    votes: int


@dataclass(frozen=True, kw_only=True)
class Rating:
    task: int
    prompt: int
    completion: int
    criterion: str
    rating: int
    rater: int
    weight: float


@dataclass(kw_only=True)
class Aggregate:
    """What the judgements of one task come to. Every label is used, or left out for a reason."""

    comparisons: list[Comparison] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Decision:
    """`side` is 1 for the first of the pair, -1 for the second, 0 for a tie."""

    side: int
    strength: float
    p: float


def margin_of(strength: float) -> float:
    """Margin for a reward model or DPO by strength, after Llama 2 (2307.09288 §3.2.1).

    >>> [margin_of(strength) for strength in (4, 3, 2, 1, 0)]
    [3.0, 2.0, 1.0, 0.0, 0.0]
    >>> margin_of(2.5)
    1.5
    """
    return max(0.0, float(strength) - 1)


def votes_of(judgement: Judgement) -> dict[Pair, int]:
    """What one label says of each pair: its strength, positive when the first of the pair is better.

    >>> label = dict(task=1, prompt=1, rater=1, completions=(8, 7))
    >>> votes_of(Judgement(kind="comparison", value={"outcome": "preferred", "preferred": 8, "strength": 3},
    ...                    **label))
    {(7, 8): -3}
    >>> votes_of(Judgement(kind="ranking", value={"ranks": {"7": 1, "8": 1}}, **label))
    {(7, 8): 0}
    >>> votes_of(Judgement(kind="comparison", value={"outcome": "both_bad"}, **label))
    {}
    """
    if judgement.kind == "ranking":
        ranks = _ranks_of(judgement)
        return {
            (first, second): (ranks[first] < ranks[second]) - (ranks[first] > ranks[second])
            for first, second in combinations(sorted(ranks), 2)
        }
    if judgement.kind == "comparison":
        first, second = sorted(judgement.completions)
        outcome = judgement.value["outcome"]
        if outcome == "tie":
            return {(first, second): 0}
        if outcome == "preferred":
            strength = int(judgement.value["strength"])
            return {(first, second): strength if judgement.value["preferred"] == first else -strength}
    return {}


def majority(votes: Sequence[int]) -> Decision:
    """
    >>> majority([3, 1, -4])
    Decision(side=1, strength=2.0, p=0.6666666666666666)
    >>> majority([4, -1])
    Decision(side=0, strength=0.0, p=0.5)
    """
    first = [vote for vote in votes if vote > 0]
    second = [-vote for vote in votes if vote < 0]
    ties = len(votes) - len(first) - len(second)
    winners = max(first, second, key=len)
    if len(first) == len(second) or ties >= len(winners):
        return Decision(0, 0.0, 0.5)
    return Decision(
        1 if winners is first else -1, float(median(winners)), (len(winners) + ties / 2) / len(votes)
    )


def mean_strength(votes: Sequence[int]) -> Decision:
    """
    >>> mean_strength([3, 1, -1])
    Decision(side=1, strength=1.0, p=0.6666666666666666)
    >>> mean_strength([4, -1, -1])  # one strong voice against two faint ones
    Decision(side=1, strength=0.6666666666666666, p=0.5)
    """
    total = sum(votes)
    if total == 0:
        return Decision(0, 0.0, 0.5)
    side = 1 if total > 0 else -1
    behind = sum(1.0 if vote * side > 0 else 0.5 if vote == 0 else 0.0 for vote in votes)
    return Decision(side, abs(total) / len(votes), max(0.5, behind / len(votes)))


def aggregate(judgements: Sequence[Judgement], *, rule: Rule) -> Aggregate:
    """Apply the rule to every judgement of ONE task (of one kind).

    >>> label = dict(task=1, prompt=5, kind="comparison", completions=(7, 8))
    >>> says = [Judgement(rater=1, value={"outcome": "preferred", "preferred": 8, "strength": 4}, **label),
    ...         Judgement(rater=2, value={"outcome": "preferred", "preferred": 8, "strength": 2}, **label),
    ...         Judgement(rater=3, value={"outcome": "both_bad"}, **label)]
    >>> result = aggregate(says, rule="majority")
    >>> [(c.chosen, c.rejected, c.strength, c.margin, c.p, c.votes) for c in result.comparisons]
    [(8, 7, 3, 2.0, 1.0, 2)]
    >>> result.used, dict(result.left_out)
    (2, {'both bad': 1})
    """
    if judgements and judgements[0].kind == "rating":
        return _ratings(judgements)
    result = Aggregate()
    if rule == "majority" and 2 * sum(map(_is_both_bad, judgements)) > len(judgements):
        for judgement in judgements:
            result.left_out[BOTH_BAD if _is_both_bad(judgement) else MOST_SAY_BOTH_BAD] += 1
        return result
    telling = []
    for judgement in judgements:
        if votes_of(judgement):
            telling.append(judgement)
        else:
            result.left_out[BOTH_BAD if _is_both_bad(judgement) else TOO_FEW_RANKED] += 1
    result.used = len(telling)
    decide = mean_strength if rule == "mean_strength" else majority  # of one vote, both say the vote
    groups = [[judgement] for judgement in telling] if rule == "each_label" else [telling]
    for group in filter(None, groups):
        if group[0].kind == "ranking":
            result.rankings.extend(_ranking(judgement, weight=1 / len(group)) for judgement in group)
        result.comparisons.extend(_pairs(group, decide=decide))
    return result


def _is_both_bad(judgement: Judgement) -> bool:
    return judgement.value.get("outcome") == "both_bad"


def _ranks_of(judgement: Judgement) -> dict[int, int]:
    return {int(completion): rank for completion, rank in judgement.value["ranks"].items()}


def _pairs(group: Sequence[Judgement], *, decide: Callable[[Sequence[int]], Decision]) -> list[Comparison]:
    votes: dict[Pair, list[int]] = {}
    for judgement in group:
        for pair, vote in votes_of(judgement).items():
            votes.setdefault(pair, []).append(vote)
    if not votes:
        return []
    weight = 1 / comb(len({completion for pair in votes for completion in pair}), 2)
    rows = []
    for pair in sorted(votes):
        decision = decide(votes[pair])
        chosen, rejected = pair if (decision.side or _coin(pair)) > 0 else (pair[1], pair[0])
        rows.append(
            Comparison(
                task=group[0].task,
                prompt=group[0].prompt,
                chosen=chosen,
                rejected=rejected,
                strength=0 if decision.side == 0 else max(1, floor(decision.strength + 0.5)),
                margin=margin_of(decision.strength),
                p=decision.p,
                weight=weight,
                votes=len(votes[pair]),
            )
        )
    return rows


def _coin(pair: Pair) -> int:
    """1 or -1, half of each, the same for the same pair."""
    return 1 if sha256(f"{pair[0]} {pair[1]}".encode()).digest()[0] % 2 else -1


def _ranking(judgement: Judgement, *, weight: float) -> Ranking:
    ranks = _ranks_of(judgement)
    order = sorted(ranks, key=lambda completion: (ranks[completion], completion))
    levels = sorted(set(ranks.values()))
    return Ranking(
        task=judgement.task,
        prompt=judgement.prompt,
        completions=tuple(order),
        ranks=tuple(levels.index(ranks[completion]) + 1 for completion in order),
        weight=weight,
        votes=1,
    )


def _ratings(judgements: Sequence[Judgement]) -> Aggregate:
    rows = [
        Rating(
            task=judgement.task,
            prompt=judgement.prompt,
            completion=judgement.completions[0],
            criterion=criterion,
            rating=int(score),
            rater=judgement.rater,
            weight=1.0,
        )
        for judgement in judgements
        for criterion, score in sorted(judgement.value["scores"].items())
    ]
    return Aggregate(ratings=rows, used=len(judgements))
