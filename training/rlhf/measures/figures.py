"""PURE: the arithmetic of an evaluation: rates with intervals, calibration, KL, a reward model's figures."""

import json
import math
from collections.abc import Hashable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from training.rlhf.data import Element

_BINS = 5
_FEW = 30  # clusters; below, a bootstrap is too sure of itself
_RESAMPLES, _AT_ONCE = 2000, 100  # the second keeps the matrix of what is drawn small
_FEW_SAMPLES = 10  # below, a regression on them says nothing


class Rate(TypedDict):
    """A share with its 95 % interval."""

    rate: float
    low: float
    high: float
    n: int


class CalibrationBin(TypedDict):
    low: float
    high: float
    predicted: float  # mean confidence in the bin
    observed: float  # how often that was right
    count: int


def wilson(successes: float, n: int, *, z: float = 1.96) -> Rate:
    """A share with Wilson's interval, which stays inside 0..1 for small n. No trials: 0 with interval 0..1.

    >>> {name: round(value, 3) for name, value in wilson(8, 10).items()}
    {'rate': 0.8, 'low': 0.49, 'high': 0.943, 'n': 10}
    """
    if n == 0:
        return Rate(rate=0.0, low=0.0, high=1.0, n=0)
    rate = successes / n
    scale = 1 + z**2 / n
    middle = (rate + z**2 / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / scale
    return Rate(rate=rate, low=max(0.0, middle - half), high=min(1.0, middle + half), n=n)


def clustered_rate(values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0) -> Rate:
    """Mean of values from 0 to 1 with a percentile bootstrap over clusters; without values as `wilson`.

    Comparisons on one prompt resemble each other, those of one ranking share texts, so whole clusters are
    drawn (Davison and Hinkley, "Bootstrap Methods", section 3.8). What was not seen cannot be drawn: with
    fewer than 30 clusters, or values that are all the same, the interval is never narrower than Wilson's for
    as many independent cases.

    >>> clustered_rate([1.0] * 9, [1, 1, 1, 2, 2, 2, 3, 3, 3])["low"] == wilson(3, 3)["low"]
    True
    """
    if not values:
        return wilson(0, 0)
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    place = np.array([names[name] for name in clusters])
    sums, counts = np.bincount(place, weights=values), np.bincount(place)
    random = np.random.default_rng(seed)
    means = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        drawn = random.integers(len(sums), size=(_AT_ONCE, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    rate = float(sums.sum() / counts.sum())
    if len(sums) < _FEW or low == high:
        guard = wilson(rate * len(sums), len(sums))
        low, high = min(low, guard["low"]), max(high, guard["high"])
    return Rate(rate=rate, low=float(low), high=float(high), n=len(values))


def reward_accuracy(
    differences: Sequence[float], p: Sequence[float], *, prompts: Sequence[Hashable] | None = None
) -> Rate:
    """How often the reward model prefers what people preferred; their ties say nothing and are left out.

    `differences`: reward of the chosen minus that of the rejected; 0 counts as half right.
    `p`: with which probability people prefer the chosen.
    `prompts`: of which prompt each comparison is; without, each is of its own.

    >>> reward_accuracy([2.0, -1.0, 0.5, 3.0], [1.0, 1.0, 1.0, 0.5])["rate"]  # the tie is left out
    0.6666666666666666
    """
    decided = [place for place, chosen in enumerate(p) if chosen != 0.5]
    right = [
        0.5 if differences[place] == 0 else float((differences[place] > 0) == (p[place] > 0.5))
        for place in decided
    ]
    return clustered_rate(right, [prompts[place] if prompts else place for place in decided])


def calibration(differences: Sequence[float], p: Sequence[float]) -> tuple[list[CalibrationBin], float]:
    """Bins of confidence from 0.5 to 1 with how often it was right, and the expected calibration error.

    Confidence is sigmoid(|difference|), the model's probability for the completion it prefers; a tie of the
    raters is half right. ECE is the mean over pairs of |predicted - observed| of their bin. Empty bins are
    left out.
    """
    confidence = [1 / (1 + math.exp(-min(abs(difference), 700.0))) for difference in differences]
    right = [
        chosen if d > 0 else 1 - chosen if d < 0 else 0.5 for d, chosen in zip(differences, p, strict=True)
    ]
    bins: list[CalibrationBin] = []
    for number in range(_BINS):
        low, high = 0.5 + 0.5 * number / _BINS, 0.5 + 0.5 * (number + 1) / _BINS
        inside = [
            place
            for place, value in enumerate(confidence)
            if low <= value < high or (number == _BINS - 1 and value >= high)
        ]
        if inside:
            predicted = sum(confidence[place] for place in inside) / len(inside)
            observed = sum(right[place] for place in inside) / len(inside)
            bins.append(
                CalibrationBin(low=low, high=high, predicted=predicted, observed=observed, count=len(inside))
            )
    gaps = sum(abs(one["predicted"] - one["observed"]) * one["count"] for one in bins)
    return bins, gaps / len(confidence) if confidence else 0.0


def win_rate(new: Sequence[float], old: Sequence[float], *, seed: int = 0) -> Rate:
    """How often new scores above old on the same prompt, ties counting half; bootstrap over prompts.

    >>> win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0])["rate"]
    0.625
    """
    wins = [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in zip(new, old, strict=True)]
    return clustered_rate(wins, range(len(wins)), seed=seed)


class Divergence(TypedDict):
    """KL of whole completions in nats; None for what so few samples do not tell."""

    kl: float | None
    kl_standard_error: float | None
    kl_k1: float | None  # the plain mean of log(policy / reference), to compare


def kl_divergence(policy: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> Divergence:
    """KL(policy || reference) of a whole completion, from the policy's own samples.

    Each element holds the log-probabilities of one sample's tokens, shape [tokens]. With r the ratio
    reference / policy of a token, the sum of -log r over the tokens (k1) has the KL as its mean, and the sum
    of r - 1 has mean 0: k1 + c * sum(r - 1) is unbiased for every c, which is k1 for 0 and k3 for 1
    (Schulman, "Approximating KL divergence"). k1 scatters least where the policies are far apart, k3 where
    they are close, so c is fitted by regression within 0..1 (Owen, "Monte Carlo", section 8.9); the bias that
    this brings is of order 1/n. With fewer than 10 samples c is 1, which is never negative.

    Summing the exact KL of each token (2504.10637) has less variance still, but needs both distributions over
    the whole vocabulary at once, hence both policies in memory. On the starter (256 completions) the standard
    errors are, for a KL of 0.15: k1 0.036, k3 0.011, this 0.011, exact sums 0.010; for a KL of 10: k1 0.72,
    k3 0.84, this 0.69, exact sums 0.61.
    """
    if not policy:
        return Divergence(kl=None, kl_standard_error=None, kl_k1=None)
    log_ratios = [(theirs - ours).double() for ours, theirs in zip(policy, reference, strict=True)]
    k1 = np.array([-one.sum().item() for one in log_ratios])
    control = np.array([one.expm1().sum().item() for one in log_ratios])
    n, spread = len(k1), control.var()
    factor = 1.0
    if n >= _FEW_SAMPLES and spread > 0:
        factor = float(np.clip(-np.mean((k1 - k1.mean()) * (control - control.mean())) / spread, 0, 1))
    samples = k1 + factor * control
    return Divergence(
        kl=float(samples.mean()),
        kl_standard_error=float(samples.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        kl_k1=float(k1.mean()),
    )


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's, or None where one side does not vary."""
    if len(one) < 2 or np.std(one) == 0 or np.std(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def reward_figures(
    elements: Sequence[Element], scores: Sequence[float], *, learnt_from: Sequence[Element] = ()
) -> dict[str, Any]:
    """The figures of evaluation.json from the scores of every completion, in order of the elements.

    Each comparison counts once, those of a ranking too; intervals take the comparisons of a prompt together.
    The length baseline is a rule without a model, "the longer text is the better one": a reward model that
    is no better has learnt nothing but length. `length_baseline` is the same rule with its interval, turned
    round where in the rows that were learnt from the shorter text was the better one more often than not.
    """
    differences: list[float] = []
    by_length: list[float] = []
    p: list[float] = []
    prompts: list[str] = []
    strengths: list[int | None] = []
    start = 0
    for element in elements:
        by_length += _longer_by(element)
        for one in element.comparisons:
            differences.append(scores[start + one.chosen] - scores[start + one.rejected])
            p.append(one.p)
            prompts.append(json.dumps(element.prompt))
            strengths.append(element.strength)
        start += len(element.completions)
    accuracy = reward_accuracy(differences, p, prompts=prompts)
    bins, ece = calibration(differences, p)
    return {
        "accuracy": accuracy["rate"] if accuracy["n"] else None,
        "low": accuracy["low"],
        "high": accuracy["high"],
        "pairs": accuracy["n"],
        "prompts": len({prompt for prompt, chosen in zip(prompts, p, strict=True) if chosen != 0.5}),
        "by_strength": _by_strength(differences, p, prompts, strengths),
        "ece": ece if differences else None,
        "calibration": bins,
        "length_baseline_accuracy": reward_accuracy(by_length, p)["rate"] if accuracy["n"] else None,
        "length_baseline": _length_baseline(by_length, p, prompts, learnt_from) if accuracy["n"] else None,
    }


def _longer_by(element: Element) -> list[float]:
    """By how many characters the chosen text of each comparison is longer."""
    lengths = [sum(len(turn["content"]) for turn in turns) for turns in element.completions]
    return [float(lengths[one.chosen] - lengths[one.rejected]) for one in element.comparisons]


def _length_baseline(
    by_length: Sequence[float], p: Sequence[float], prompts: Sequence[str], learnt_from: Sequence[Element]
) -> dict[str, Any]:
    seen = reward_accuracy(
        [length for element in learnt_from for length in _longer_by(element)],
        [one.p for element in learnt_from for one in element.comparisons],
    )
    shorter = seen["n"] > 0 and seen["rate"] < 0.5
    found = reward_accuracy([-one for one in by_length] if shorter else by_length, p, prompts=prompts)
    return {
        "rule": "shorter is better" if shorter else "longer is better",
        "accuracy": found["rate"],
        "low": found["low"],
        "high": found["high"],
        "pairs": found["n"],
    }


def _by_strength(
    differences: Sequence[float], p: Sequence[float], prompts: Sequence[str], strengths: Sequence[int | None]
) -> dict[str, dict[str, float]]:
    """Accuracy where people preferred how strongly; a strength with nothing but ties is left out."""
    found = {}
    for strength in sorted({one for one in strengths if one}):
        places = [place for place, other in enumerate(strengths) if other == strength]
        part = reward_accuracy(
            [differences[place] for place in places],
            [p[place] for place in places],
            prompts=[prompts[place] for place in places],
        )
        if part["n"]:
            found[str(strength)] = {
                "accuracy": part["rate"],
                "pairs": part["n"],
                "low": part["low"],
                "high": part["high"],
            }
    return found
