"""PURE: ratings of single completions, told as good or bad. Standard library only."""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from training.rlhf.rows.single_rows import Rating, Unpaired

OVERALL = ("", "overall")  # criteria that judge a completion as a whole


class Verdicts(NamedTuple):
    rows: list[Unpaired]
    between: int  # completions that were neither good nor bad


def verdicts(ratings: Iterable[Rating], *, good_from: float, bad_to: float) -> Verdicts:
    """One row for each completion of a prompt: good from `good_from` up, bad from `bad_to` down.

    What lies between is left out and counted. Rows stand in the order in which their completions came.
    """
    found: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        found[json.dumps([rating.prompt, rating.completion], sort_keys=True)].append(rating)
    rows, between = [], 0
    for said in found.values():
        mean = verdict(said)
        if bad_to < mean < good_from:
            between += 1
            continue
        rows.append(
            Unpaired(
                table="ratings",
                line=said[0].line,
                prompt=said[0].prompt,
                completion=said[0].completion,
                weight=sum(one.weight for one in said) / len(said),
                label=mean >= good_from,
            )
        )
    return Verdicts(rows, between)


def verdict(ratings: list[Rating]) -> float:
    """What raters say of one completion: the mean of a criterion's ratings by weight, then of the criteria.

    Where some rated it as a whole, that counts alone.
    """
    whole = [one for one in ratings if one.criterion.strip().lower() in OVERALL]
    by_criterion: dict[str, list[Rating]] = defaultdict(list)
    for one in whole or ratings:
        by_criterion["" if whole else one.criterion].append(one)
    means = [
        sum(one.rating * one.weight for one in said) / sum(one.weight for one in said)
        for said in by_criterion.values()
    ]
    return sum(means) / len(means)
