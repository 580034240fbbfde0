"""How far people agree with an AI that judged the same pairs. Pure.

People are the measure here: the AI's verdict on a pair is held against each label that people gave it, and
people's agreement among themselves is what can be hoped for.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from labeling.agreement import Outcome, WinRate, win_rate

SIDES = ("first", "tie", "second")


class AiJudged(NamedTuple):
    """A pair that both judged. `p`: how likely the first is better, says the AI.

    `votes`: one for each label, above 0 for the first, below for the second, 0 for a tie.
    """

    prompt: int
    p: float
    votes: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class AiAgreement:
    """`share`: labels on the AI's side, a tie against a side counting half, with its 95 % interval.

    `kappa`: Cohen's, over first, tie and second; None where chance alone explains everything.
    `counts`: labels by (AI's side, people's side).
    """

    share: WinRate | None
    kappa: float | None
    pairs: int
    labels: int
    counts: dict[tuple[str, str], int]


def agreement_with_ai(judged: Iterable[AiJudged], *, seed: int = 0) -> AiAgreement:
    """Every label counts by itself; the interval draws whole prompts.

    >>> found = agreement_with_ai([AiJudged(1, 1.0, [3, 1]), AiJudged(2, 0.0, [-2]), AiJudged(3, 1.0, [0])])
    >>> found.share.rate, found.labels, found.pairs, round(found.kappa, 2)
    (0.875, 4, 3, 0.56)
    """
    outcomes: list[Outcome] = []
    counts: Counter[tuple[str, str]] = Counter()
    pairs = 0
    for prompt, p, votes in judged:
        ai = side_of(p - 0.5)
        pairs += bool(votes)
        for vote in votes:
            human = side_of(vote)
            counts[ai, human] += 1
            score = 1.0 if ai == human else 0.5 if "tie" in (ai, human) else 0.0
            outcomes.append(Outcome(prompt, score))
    return AiAgreement(
        share=win_rate(outcomes, seed=seed),
        kappa=cohen_kappa(counts),
        pairs=pairs,
        labels=len(outcomes),
        counts=dict(counts),
    )


def side_of(difference: float) -> str:
    return "first" if difference > 0 else "second" if difference < 0 else "tie"


def cohen_kappa(counts: Counter[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two judges, from how often each pair of answers was given (Cohen 1960).

    1 is full agreement, 0 what two judges with these habits reach by chance. None when that is already 1, or
    nothing was judged.

    >>> cohen_kappa(Counter({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}))
    0.4
    """
    total = counts.total()
    if not total:
        return None
    ones: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for (one, other), count in counts.items():
        ones[one] += count
        others[other] += count
    agreed = sum(count for (one, other), count in counts.items() if one == other) / total
    chance = sum(ones[side] * others[side] for side in ones) / total**2
    return None if chance == 1 else round((agreed - chance) / (1 - chance), 12)
