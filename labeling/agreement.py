"""How far raters agree, and how often people prefer one policy to another. Pure.

numpy is imported where it is needed: the web process starts without it.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import sqrt
from typing import Literal

from labeling.comparisons import Judgement, Rule, aggregate, votes_of

Level = Literal["nominal", "ordinal"]

Z_95 = 1.959964  # the normal distribution has 95 % of its mass within this many deviations
FEW_PROMPTS = 30  # below, a bootstrap is too sure of itself
_RESAMPLES_AT_ONCE = 100  # keeps the matrix of drawn prompts small


@dataclass(frozen=True)
class Share:
    """A share of `n` cases; without a case there is none."""

    rate: float | None = None
    n: int = 0


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    overall: Share
    # "When one said 'far better' (4), how often did another take the same side?"
    by_strength: Mapping[int, Share] = field(default_factory=dict)
    tasks: int = 0  # judged by two raters or more


@dataclass(frozen=True)
class Outcome:
    """One label on a task of new policy against old."""

    prompt: int
    score: float  # 1 the new one is preferred, 0 the old one, 0.5 neither


@dataclass(frozen=True)
class WinRate:
    """Of the new policy, a tie counting half, with its 95 % interval; `n` labels."""

    rate: float
    low: float
    high: float
    n: int


def pair_agreement(judgements: Iterable[Judgement]) -> PairAgreement:
    """Share of pairs of raters who took the same side of the same two completions.

    Two ties agree; a tie against a side counts half (a coin thrown by the one who saw no difference would
    agree that often); "both bad" takes no side and is left out. A ranking counts with each of its pairs,
    without a strength. `by_strength` looks from each rater who named a strength at each other rater.

    >>> def label(rater, preferred, strength):
    ...     value = {"outcome": "preferred", "preferred": preferred, "strength": strength}
    ...     return Judgement(task=1, prompt=1, rater=rater, kind="comparison", value=value,
    ...                      completions=(7, 8))
    >>> found = pair_agreement([label(1, 7, 4), label(2, 7, 1), label(3, 8, 1)])
    >>> found.overall
    Share(rate=0.3333333333333333, n=3)
    >>> found.by_strength[4], found.by_strength[1]
    (Share(rate=0.5, n=2), Share(rate=0.25, n=4))
    """
    votes: dict[tuple[int, Hashable], list[tuple[int, int]]] = defaultdict(list)
    for judgement in judgements:
        named = judgement.kind == "comparison"
        for pair, vote in votes_of(judgement).items():
            votes[judgement.task, pair].append((vote, abs(vote) if named else 0))
    agreed: dict[int, list[float]] = defaultdict(list)
    everywhere: list[float] = []
    for said in votes.values():
        for (one, strength), (other, _) in permutations(said, 2):
            same = 0.5 if (one == 0) != (other == 0) else float((one > 0) == (other > 0))
            everywhere.append(same)
            if strength:
                agreed[strength].append(same)
    return PairAgreement(
        overall=_share(everywhere, counted_twice=True),
        by_strength={strength: _share(agreed[strength]) for strength in sorted(agreed)},
        tasks=len({task for (task, _), said in votes.items() if len(said) > 1}),
    )


def rater_accuracy(tasks: Iterable[Sequence[Judgement]], *, rule: Rule) -> PairAgreement:
    """How often a rater is on the side that the other raters of the task come to under the rule.

    What a reward model's accuracy is to be held against: the same tasks, the same rule, decided comparisons
    alone. A rater's tie counts half. `by_strength` goes by the strength that the others come to. It is no
    ceiling: a rater who is right with probability a agrees with one other with a^2 + (1 - a)^2, and a model
    that knew what is right would agree with single labels with a.

    >>> def label(rater, preferred, strength):
    ...     value = {"outcome": "preferred", "preferred": preferred, "strength": strength}
    ...     return Judgement(task=1, prompt=1, rater=rater, kind="comparison", value=value,
    ...                      completions=(7, 8))
    >>> rater_accuracy([[label(1, 7, 4), label(2, 7, 2), label(3, 8, 1)]], rule="majority").overall
    Share(rate=0.0, n=1)
    >>> rater_accuracy([[label(1, 7, 4), label(2, 7, 2), label(3, 8, 1)]], rule="each_label").overall
    Share(rate=0.3333333333333333, n=6)
    """
    agreed: dict[int, list[float]] = defaultdict(list)
    several = 0
    for judgements in tasks:
        several += len(judgements) > 1
        for place, judgement in enumerate(judgements):
            votes = votes_of(judgement)
            others = [*judgements[:place], *judgements[place + 1 :]]
            for row in aggregate(others, rule=rule).comparisons if others and votes else ():
                pair = (min(row.chosen, row.rejected), max(row.chosen, row.rejected))
                if row.strength and pair in votes:
                    vote = votes[pair] if row.chosen == pair[0] else -votes[pair]
                    agreed[row.strength].append(1.0 if vote > 0 else 0.5 if vote == 0 else 0.0)
    everywhere = [value for values in agreed.values() for value in values]
    by_strength = {strength: _share(agreed[strength]) for strength in sorted(agreed)}
    return PairAgreement(overall=_share(everywhere), by_strength=by_strength, tasks=several)


def _share(values: Sequence[float], *, counted_twice: bool = False) -> Share:
    if not values:
        return Share()
    return Share(sum(values) / len(values), len(values) // 2 if counted_twice else len(values))


def krippendorff_alpha(units: Iterable[Sequence[float]], *, level: Level) -> float | None:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance gives. `units`: what was said of each item.

    Items judged once are passed over. None when nothing can be said: no item was judged twice, or
    everybody gave the same value throughout. Krippendorff, "Computing Krippendorff's Alpha-Reliability"
    (2011).

    >>> krippendorff_alpha([[1, 1], [2, 2], [1, 2]], level="nominal")
    0.4444444444444444
    """
    import numpy as np

    paired = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in paired for value in unit})
    if len(values) < 2:
        return None
    place = {value: index for index, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in paired:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)  # how often each value was given
    if level == "nominal":
        distance = 1.0 - np.eye(len(values))
    else:
        # Distance of two ranks: how many values were given from one to the other, both ends half.
        middle = np.cumsum(totals) - totals / 2
        distance = (middle[:, None] - middle[None, :]) ** 2
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def win_rate(outcomes: Iterable[Outcome], *, seed: int, resamples: int = 2000) -> WinRate | None:
    """Win rate with a percentile bootstrap over prompts; None without outcomes.

    Labels on one prompt resemble each other, so whole prompts are drawn. What was not seen cannot be drawn:
    three wins of three would give an interval of no width. With fewer than 30 prompts it is therefore never
    narrower than Wilson's interval for as many independent cases.

    >>> found = win_rate([Outcome(1, 1.0), Outcome(2, 1.0), Outcome(3, 1.0)], seed=0)
    >>> found.rate, round(found.low, 2), found.high, found.n
    (1.0, 0.44, 1.0, 3)
    """
    import numpy as np

    scores: dict[int, list[float]] = defaultdict(list)
    for outcome in outcomes:
        scores[outcome.prompt].append(outcome.score)
    if not scores:
        return None
    sums = np.array([sum(scores[prompt]) for prompt in sorted(scores)])
    counts = np.array([len(scores[prompt]) for prompt in sorted(scores)])
    rate = float(sums.sum() / counts.sum())
    random = np.random.default_rng(seed)
    drawn_rates = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = (min(_RESAMPLES_AT_ONCE, resamples - start), len(sums))
        drawn = random.integers(len(sums), size=size)
        drawn_rates.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(drawn_rates), [2.5, 97.5])
    if len(sums) < FEW_PROMPTS:
        wilson_low, wilson_high = wilson(rate, len(sums))
        low, high = min(low, wilson_low), max(high, wilson_high)
    return WinRate(rate, float(low), float(high), int(counts.sum()))


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n` independent cases.

    >>> [round(bound, 3) for bound in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    square = Z_95**2 / n
    middle = (rate + square / 2) / (1 + square)
    half = Z_95 * sqrt(rate * (1 - rate) / n + square / (4 * n)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
