"""Ratings as a reward model learns from them: one element is one completion as one rater rated it.

The table has a row for each criterion of the protocol. Which of them count is decided here: where a rater
gave an overall verdict (criterion "" or "overall", in any case), that alone, because people weigh criteria
better than a mean does; otherwise all criteria alike. Standard library only.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.rlhf.data import Split
from training.rlhf.rows.door import Message
from training.rlhf.rows.single_rows import CompletionRow, Rating, read_ratings
from training.rlhf.run_dir import RunDir

OVERALL = ("", "overall")


@dataclass(frozen=True, kw_only=True)
class Rated(CompletionRow):
    """What one rater said of a completion: a rating for each criterion that counts. `line` is the first's."""

    ratings: tuple[float, ...]
    rater: int | None = None
    table: str = "ratings"

    @property
    def rating(self) -> float:
        """The mean over the criteria."""
        return sum(self.ratings) / len(self.ratings)


def read_rated(run_dir: RunDir, split: Split) -> list[Rated]:
    """The elements of `ratings`, in the file's order. Raises Refused for a row that is none."""
    return joined(read_ratings(run_dir.data / f"ratings.{split}.jsonl"))


def joined(rows: Iterable[Rating]) -> list[Rated]:
    """Rows of the same prompt, completion and rater are one element, with the mean of their weights.

    A criterion that comes a second time opens another element: the same text may have been rated twice.
    """
    groups: list[list[Rating]] = []
    open_groups: dict[Any, list[Rating]] = {}
    for row in rows:
        key = (_key(row.prompt), _key(row.completion), row.rater)
        group = open_groups.get(key)
        if group is None or row.criterion in {one.criterion for one in group}:
            group = open_groups[key] = []
            groups.append(group)
        group.append(row)
    return [_element(group) for group in groups]


def _element(group: list[Rating]) -> Rated:
    overall = [row for row in group if row.criterion.strip().lower() in OVERALL]
    counted = overall or group
    return Rated(
        line=group[0].line,
        prompt=group[0].prompt,
        completion=group[0].completion,
        weight=sum(row.weight for row in counted) / len(counted),
        ratings=tuple(row.rating for row in counted),
        rater=group[0].rater,
    )


def _key(messages: list[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)


def scale_of(run_dir: RunDir, rated: Iterable[Rated]) -> list[float]:
    """The ratings that there may be, lowest first: those seen, and those that the protocols allow."""
    seen = {rating for one in rated for rating in one.ratings}
    path = run_dir.data / "manifest.json"
    allowed = scale_of_manifest(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    if seen and allowed:
        seen |= {float(rating) for rating in range(allowed[0], allowed[1] + 1)}
    return sorted(seen)


def scale_of_manifest(manifest: Any) -> tuple[int, int] | None:
    """Lowest and highest rating that the protocols of a dataset's rounds allow; None where it does not say.

    >>> scale_of_manifest({"parents": {"rounds": [{"kind": "rating",
    ...                                            "protocol": {"options": {"low": 1, "high": 5}}}]}})
    (1, 5)
    """
    try:
        allowed = [round["protocol"]["options"] for round in manifest["parents"]["rounds"]
                   if round["kind"] == "rating"]  # fmt: skip
        low, high = min(one["low"] for one in allowed), max(one["high"] for one in allowed)
    except (KeyError, TypeError, ValueError):  # an imported dataset says something else, or nothing
        return None
    return (low, high) if isinstance(low, int) and isinstance(high, int) and low < high else None


def acceptable_from(scale: Sequence[float]) -> float:
    """The lowest rating of the upper half of a scale.

    >>> acceptable_from([1, 2, 3, 4, 5]), acceptable_from([1, 2, 3, 4]), acceptable_from([0, 1])
    (4, 3, 1)
    """
    middle = (scale[0] + scale[-1]) / 2
    return next((rating for rating in scale if rating > middle), scale[-1])
