"""PURE: the arithmetic of an evaluation: rates with intervals, calibration, KL, a reward model's figures."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from training.rlhf.data import Comparison, Element

_BINS = 5


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


def reward_accuracy(differences: Sequence[float], p: Sequence[float]) -> Rate:
    """How often the reward model prefers what people preferred; their ties say nothing and are left out.

    `differences`: reward of the chosen minus that of the rejected; 0 counts as half right.
    `p`: with which probability people prefer the chosen.

    >>> reward_accuracy([2.0, -1.0, 0.5, 3.0], [1.0, 1.0, 1.0, 0.5])["rate"]  # the tie is left out
    0.6666666666666666
    """
    right = [
        0.5 if difference == 0 else float((difference > 0) == (chosen > 0.5))
        for difference, chosen in zip(differences, p, strict=True)
        if chosen != 0.5
    ]
    return wilson(sum(right), len(right))


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
    wins = np.array(
        [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in zip(new, old, strict=True)]
    )
    if not len(wins):
        return Rate(rate=0.0, low=0.0, high=1.0, n=0)
    draws = np.random.default_rng(seed).integers(len(wins), size=(2000, len(wins)))
    low, high = np.percentile(wins[draws].mean(axis=1), [2.5, 97.5])
    return Rate(rate=float(wins.mean()), low=float(low), high=float(high), n=len(wins))


def kl_estimates(policy: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> tuple[float, float]:
    """KL(policy || reference) of a whole completion in nats: (k1, k3), means over the policy's own samples.

    Each element holds the log-probabilities of one sample's tokens, shape [tokens]. k1 is the mean of
    log(policy/reference), k3 sums (r - 1) - log r with r = reference/policy over the tokens (Schulman,
    "Approximating KL divergence"): both are unbiased, k3 is never negative and scatters less.
    """
    k1, k3 = [], []
    for ours, theirs in zip(policy, reference, strict=True):
        log_ratio = (theirs - ours).double()
        k1.append(-log_ratio.sum().item())
        k3.append((log_ratio.exp() - 1 - log_ratio).sum().item())
    return (sum(k1) / len(k1), sum(k3) / len(k3)) if k1 else (0.0, 0.0)


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's, or None where one side does not vary."""
    if len(one) < 2 or np.std(one) == 0 or np.std(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def reward_figures(elements: Sequence[Element], scores: Sequence[float]) -> dict[str, Any]:
    """The figures of evaluation.json from the scores of every completion, in order of the elements.

    The length baseline is a rule without a model, "the longer text is the better one": a reward model that
    is no better has learnt nothing but length.
    """
    differences: list[float] = []
    by_length: list[float] = []
    compared: list[tuple[Comparison, int | None]] = []
    start = 0
    for element in elements:
        lengths = [sum(len(turn["content"]) for turn in turns) for turns in element.completions]
        for one in element.comparisons:
            differences.append(scores[start + one.chosen] - scores[start + one.rejected])
            by_length.append(lengths[one.chosen] - lengths[one.rejected])
            compared.append((one, element.strength))
        start += len(element.completions)
    p = [one.p for one, _ in compared]
    accuracy = reward_accuracy(differences, p)
    bins, ece = calibration(differences, p)
    by_strength = {}
    for strength in sorted({strength for _, strength in compared if strength}):
        places = [place for place, (_, other) in enumerate(compared) if other == strength]
        part = reward_accuracy([differences[place] for place in places], [p[place] for place in places])
        by_strength[str(strength)] = {"accuracy": part["rate"], "pairs": part["n"]}
    return {
        "accuracy": accuracy["rate"] if accuracy["n"] else None,
        "low": accuracy["low"],
        "high": accuracy["high"],
        "pairs": accuracy["n"],
        "by_strength": by_strength,
        "ece": ece,
        "calibration": bins,
        "length_baseline_accuracy": reward_accuracy(by_length, p)["rate"] if accuracy["n"] else None,
    }
