"""PURE: how well scores agree with ratings that people gave: order, distance, and acceptable or not.

Every rating counts once, so a completion with several raters counts several times; intervals take the ratings
of a prompt together. A figure that cannot be computed is None: too few cases, or nothing that varies.
"""

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.rlhf.measures.figures import clustered_rate, correlation
from training.rlhf.rows.rated import Rated

_RESAMPLES = 500
_FEW = 10  # prompts; below, no interval of a correlation means anything

Array = NDArray[np.float64]


def average_ranks(values: Sequence[float]) -> Array:
    """Ranks from 1, equal values sharing the mean of theirs.

    >>> average_ranks([3.0, 1.0, 3.0]).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    ranks: Array = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Rank correlation (Spearman 1904), ties by their mean rank; None where one side does not vary."""
    return correlation(average_ranks(one).tolist(), average_ranks(other).tolist()) if one else None


def kendall(scores: Sequence[float], ratings: Sequence[float]) -> float | None:
    """Kendall's tau-b (1945), which allows for ties; None where one side does not vary.

    Ratings have few values, so pairs are counted value by value: n log n for each.
    """
    score, rating = np.asarray(scores, dtype=float), np.asarray(ratings, dtype=float)
    lower = np.empty(0)  # scores of the ratings below, in order
    balance = 0
    for value in np.unique(rating):
        here = score[rating == value]
        below = np.searchsorted(lower, here, side="left").sum()
        above = len(lower) * len(here) - np.searchsorted(lower, here, side="right").sum()
        balance += int(below - above)  # concordant less discordant
        lower = np.sort(np.concatenate([lower, here]))
    room = _untied_pairs(score) * _untied_pairs(rating)
    return balance / room**0.5 if room else None


def _untied_pairs(values: Array) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return int(len(values) * (len(values) - 1) // 2 - (counts * (counts - 1) // 2).sum())


def classification(predicted: Sequence[bool], actual: Sequence[bool]) -> dict[str, float | int | None]:
    """Precision, recall and F1 of a yes; None where nothing was, or was said to be, one.

    >>> classification([True, True, False, False], [True, False, True, False])
    {'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'predicted': 2, 'actual': 2}
    """
    hits = sum(one and other for one, other in zip(predicted, actual, strict=True))
    said, were = sum(predicted), sum(actual)
    return {
        "precision": hits / said if said else None,
        "recall": hits / were if were else None,
        "f1": 2 * hits / (said + were) if said + were else None,
        "predicted": said,
        "actual": were,
    }


def rating_figures(
    rated: Sequence[Rated],
    scores: Sequence[float],
    *,
    expected: Sequence[float] | None = None,
    finds_acceptable: Sequence[bool] | None = None,
    acceptable_from: float | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The figures of evaluation.json for held-out ratings; None when there are none.

    `scores`, `expected` (ratings) and `finds_acceptable`: of the same completions, in order; the latter two
    come from a rating head and are None for a model that has none. `acceptable_from`: people find a
    completion acceptable from this rating up.
    """
    if not rated:
        return None
    given = [one.rating for one in rated]
    prompts = [json.dumps(one.prompt) for one in rated]
    low, high = _spearman_interval(scores, given, prompts, seed=seed)
    middle = float(np.median(given))
    lengths = [float(sum(len(turn["content"]) for turn in one.completion)) for one in rated]
    return {
        "n": len(rated),
        "prompts": len(set(prompts)),
        "spearman": spearman(scores, given),
        "spearman_low": low,
        "spearman_high": high,
        "kendall": kendall(scores, given),
        "length_spearman": spearman(lengths, given),  # what "longer is better" would get
        "order": _order(rated, scores, prompts),
        "mae": _distance(expected, given) if expected is not None else None,
        "mae_of_median": _distance([middle] * len(given), given),  # the best that one answer for all can do
        "mae_of_raters": _between_raters(rated, prompts),
        "acceptable": _acceptable(finds_acceptable, given, prompts, threshold=acceptable_from),
    }


def _spearman_interval(
    scores: Sequence[float], given: Sequence[float], prompts: Sequence[str], *, seed: int
) -> tuple[float | None, float | None]:
    """A 95 % percentile bootstrap over prompts."""
    names = {name: number for number, name in enumerate(dict.fromkeys(prompts))}
    if len(names) < _FEW:
        return None, None
    places: list[list[int]] = [[] for _ in names]
    for place, name in enumerate(prompts):
        places[names[name]].append(place)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        drawn = [place for number in random.integers(len(names), size=len(names)) for place in places[number]]
        value = spearman([scores[place] for place in drawn], [given[place] for place in drawn])
        if value is not None:
            found.append(value)
    if len(found) < _RESAMPLES / 2:
        return None, None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _order(rated: Sequence[Rated], scores: Sequence[float], prompts: Sequence[str]) -> dict[str, Any] | None:
    """Of two completions of one prompt that people rated differently, how often the better scores higher."""
    texts: dict[str, dict[str, tuple[float, list[float]]]] = {}
    for one, score, prompt in zip(rated, scores, prompts, strict=True):
        texts.setdefault(prompt, {}).setdefault(json.dumps(one.completion), (score, []))[1].append(one.rating)
    right, clusters = [], []
    for prompt, completions in texts.items():
        means = [(score, sum(ratings) / len(ratings)) for score, ratings in completions.values()]
        for (score, rating), (other_score, other_rating) in combinations(means, 2):
            if rating != other_rating:
                agrees = (score > other_score) == (rating > other_rating)
                right.append(0.5 if score == other_score else float(agrees))
                clusters.append(prompt)
    if not right:
        return None
    found = clustered_rate(right, clusters)
    return {"accuracy": found["rate"], "low": found["low"], "high": found["high"], "pairs": found["n"]}


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.mean(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float))))


def _between_raters(rated: Sequence[Rated], prompts: Sequence[str]) -> float | None:
    """How far two raters of the same completion are apart on average: nobody need be closer."""
    texts: dict[tuple[str, str], list[float]] = {}
    for one, prompt in zip(rated, prompts, strict=True):
        texts.setdefault((prompt, json.dumps(one.completion)), []).append(one.rating)
    apart = [abs(one - other) for ratings in texts.values() for one, other in combinations(ratings, 2)]
    return sum(apart) / len(apart) if apart else None


def _acceptable(
    found: Sequence[bool] | None, given: Sequence[float], prompts: Sequence[str], *, threshold: float | None
) -> dict[str, Any] | None:
    if found is None or threshold is None:
        return None
    actual = [rating >= threshold for rating in given]
    right = clustered_rate([float(one == other) for one, other in zip(found, actual, strict=True)], prompts)
    return {
        "from": threshold,
        "n": right["n"],
        "accuracy": right["rate"],
        "low": right["low"],
        "high": right["high"],
        **classification(found, actual),
    }
