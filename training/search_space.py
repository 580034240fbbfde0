"""PURE  What a sweep tries: settings with values or ranges, and the points that a grid or chance takes.

A range is linear, or logarithmic where a setting's size matters and not its difference (a learning rate).
"""

import math
import random
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

MOST_SETTINGS = 6
MOST_VALUES = 32  # of one setting
MOST_RUNS = 64
Point = dict[str, Any]


class SpaceError(ValueError):
    """A space that cannot be searched; `setting` names where."""

    def __init__(self, why: str, *, setting: str = "") -> None:
        super().__init__(why)
        self.setting = setting


@dataclass(frozen=True)
class Values:
    """These, and no others."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """From low to high, both within. A grid takes `points` of it."""

    low: float
    high: float
    log: bool = False
    whole: bool = False  # whole numbers alone
    points: int = 3


Space = dict[str, Values | Range]


def parsed(text: str, *, kind: type, setting: str = "") -> Values | Range:
    """Values as people write them: "a, b, c", or "low to high", "low to high, log", "low to high in 5".

    `kind`: int, float, bool or str. Raises SpaceError.

    >>> parsed("1e-5, 1e-4", kind=float)
    Values(values=(1e-05, 0.0001))
    >>> parsed("1e-5 to 1e-3, log in 5", kind=float)
    Range(low=1e-05, high=0.001, log=True, whole=False, points=5)
    >>> parsed("4 to 16", kind=int)
    Range(low=4, high=16, log=False, whole=True, points=3)
    """
    found = re.fullmatch(
        r"\s*(\S+)\s+to\s+(\S+?)\s*,?\s*(log|linear)?\s*,?\s*(?:in\s+(\d{1,3}))?\s*", text, re.IGNORECASE
    )
    if found and kind in (int, float):
        low, high = (_number(part, kind, setting) for part in found.group(1, 2))
        if low >= high:
            raise SpaceError(
                f"{low:g} to {high:g} is no range: the first is the smaller one.", setting=setting
            )
        log = (found[3] or "").lower() == "log"
        if log and low <= 0:
            raise SpaceError(f"A logarithmic range begins above 0, not at {low:g}.", setting=setting)
        points = int(found[4] or 3)
        if not 2 <= points <= MOST_VALUES:
            raise SpaceError(f"A grid takes 2 to {MOST_VALUES} points of a range.", setting=setting)
        return Range(low, high, log, kind is int, points)
    parts = [part.strip() for part in text.split(",")]
    values = tuple(dict.fromkeys(_value(part, kind, setting) for part in parts if part))
    if len(values) < 2:
        raise SpaceError("Write two values or more, or a range such as 1e-5 to 1e-3, log.", setting=setting)
    if len(values) > MOST_VALUES:
        raise SpaceError(f"At most {MOST_VALUES} values.", setting=setting)
    return Values(values)


def _value(text: str, kind: type, setting: str) -> Any:
    if kind is bool:
        if text.lower() not in ("yes", "no", "true", "false"):
            raise SpaceError(f"{text} is neither yes nor no.", setting=setting)
        return text.lower() in ("yes", "true")
    return text if kind is str else _number(text, kind, setting)


def _number(text: str, kind: type, setting: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        word = "whole number" if kind is int else "number"
        raise SpaceError(f"{text} is no {word}.", setting=setting) from None
    if not math.isfinite(value):
        raise SpaceError(f"{text} is no number that can be tried.", setting=setting)
    return value


def check(space: Space) -> None:
    """Raises SpaceError for a space that nobody can search."""
    if not space:
        raise SpaceError("Choose at least one setting to try several values of.")
    if len(space) > MOST_SETTINGS:
        raise SpaceError(f"At most {MOST_SETTINGS} settings at once: more are not told apart by so few runs.")


def grid(space: Space, *, most: int = MOST_RUNS) -> list[Point]:
    """Every combination, each once. Raises SpaceError with their number when there are more than `most`.

    >>> grid({"a": Values((1, 2)), "b": Range(0.0, 1.0)})[:2]
    [{'a': 1, 'b': 0.0}, {'a': 1, 'b': 0.5}]
    """
    columns = {name: _points(one) for name, one in space.items()}
    count = math.prod(map(len, columns.values()))
    if count > most:
        sum_of = " × ".join(str(len(column)) for column in columns.values())
        raise SpaceError(
            f"This grid has {sum_of} = {count} runs, and {most} are allowed: take fewer values, "
            "or draw at random."
        )
    return [dict(zip(columns, values, strict=True)) for values in product(*columns.values())]


def _points(one: Values | Range) -> list[Any]:
    if isinstance(one, Values):
        return list(one.values)
    shares = [place / (one.points - 1) for place in range(one.points)]
    return list(dict.fromkeys(_at(one, share) for share in shares))


def _at(one: Range, share: float) -> float:
    """The value at a share of the way from low to high, exact at both ends."""
    if share in (0, 1):
        value = one.high if share else one.low
    elif one.log:
        value = math.exp(math.log(one.low) + share * (math.log(one.high) - math.log(one.low)))
    else:
        value = one.low + share * (one.high - one.low)
    value = min(max(value, one.low), one.high)
    return round(value) if one.whole else float(f"{value:.4g}")


def drawn(space: Space, *, runs: int, seed: int) -> list[Point]:
    """Independent points (Bergstra and Bengio 2012): the same seed draws the same. None comes twice.

    Fewer than `runs` where the space has no more.
    """
    chance = random.Random(seed)
    found: list[Point] = []
    for _ in range(runs * 50):
        point = {name: _drawn(one, chance) for name, one in space.items()}
        if point not in found:
            found.append(point)
        if len(found) == runs:
            break
    return found


def _drawn(one: Values | Range, chance: random.Random) -> Any:
    return chance.choice(one.values) if isinstance(one, Values) else within(one, _at(one, chance.random()))


def within(one: Range, value: float) -> float:
    """Rounding to a few digits may step over an end by a hair.

    >>> within(Range(0.12345, 1.0), 0.1234)
    0.12345
    """
    return min(max(value, one.low), one.high)


def corners(space: Space) -> list[tuple[str, Any]]:
    """Each setting at each of its values, or at both ends: what has to be a recipe before anything runs."""
    return [
        (name, value)
        for name, one in space.items()
        for value in (one.values if isinstance(one, Values) else (one.low, one.high))
    ]


def to_json(space: Space) -> dict[str, Any]:
    return {
        name: {"values": list(one.values)}
        if isinstance(one, Values)
        else {"low": one.low, "high": one.high, "log": one.log, "whole": one.whole, "points": one.points}
        for name, one in space.items()
    }


def from_json(data: Any) -> Space:
    """Raises SpaceError for anything that `to_json` would not have written."""
    if not isinstance(data, dict):
        raise SpaceError("space: an object of settings, such as training.learning_rate.")
    return {str(name): _one_from_json(str(name), one) for name, one in data.items()}


def _one_from_json(name: str, one: Any) -> Values | Range:
    if isinstance(one, list):
        one = {"values": one}
    if not isinstance(one, dict):
        raise SpaceError(f"{name}: a list of values, or an object with low and high.", setting=name)
    if "values" in one:
        values = one["values"]
        plain = isinstance(values, list) and all(isinstance(v, str | int | float | bool) for v in values)
        if not plain or not 1 <= len(values) <= MOST_VALUES:
            raise SpaceError(f"{name}.values: a list of 1 to {MOST_VALUES} values.", setting=name)
        return Values(tuple(dict.fromkeys(values)))
    low, high = one.get("low"), one.get("high")
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in (low, high)):
        raise SpaceError(f"{name}: low and high are numbers.", setting=name)
    assert low is not None and high is not None
    points = one.get("points", 3)
    if not isinstance(points, int) or not 2 <= points <= MOST_VALUES:
        raise SpaceError(f"{name}.points: from 2 to {MOST_VALUES}.", setting=name)
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (one.get("log") and low <= 0):
        raise SpaceError(f"{name}: low below high, and above 0 in a logarithmic range.", setting=name)
    whole = bool(one.get("whole"))
    if whole and not (float(low).is_integer() and float(high).is_integer()):
        raise SpaceError(f"{name}: a whole range begins and ends at whole numbers.", setting=name)
    return Range(low, high, bool(one.get("log")), whole, points)


def in_words(one: Values | Range) -> str:
    """As `parsed` reads it.

    >>> in_words(Range(1e-05, 0.001, log=True)), in_words(Values((1, 2)))
    ('1e-05 to 0.001, log', '1, 2')
    """
    if isinstance(one, Values):
        return ", ".join(map(str, one.values))
    return f"{one.low:g} to {one.high:g}{', log' if one.log else ''}"
