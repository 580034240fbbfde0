"""PURE  Charts of a sweep: what the runs came to, by each setting that they differ in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.charts import (
    BOTTOM,
    CAP,
    LEFT,
    RIGHT,
    TOP,
    Chart,
    Dot,
    Line,
    Tick,
    nice_ticks,
    number,
    shortened,
)

LOG_FROM = 20  # a range whose end is so many times its beginning is drawn by its logarithm


@dataclass(frozen=True)
class Result:
    """A run's value of the setting, and what it came to with its interval."""

    label: str
    at: Any
    value: float
    low: float | None = None
    high: float | None = None
    is_best: bool = False


def setting_chart(
    *, key: str, title: str, x_label: str, y_label: str, results: Sequence[Result], log: bool | None = None
) -> Chart:
    """A dot for each run: numbers along an axis (logarithmic where `log`), words in columns."""
    numbers = [r.at for r in results if isinstance(r.at, int | float) and not isinstance(r.at, bool)]
    if len(numbers) == len(results) and results:
        places, ticks = _along(numbers, log)
    else:
        places, ticks = _in_columns([_word(result.at) for result in results])
    bounds = [v for r in results for v in (r.value, r.low, r.high) if v is not None]
    y_ticks = nice_ticks(min(bounds, default=0.0), max(bounds, default=1.0))

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(BOTTOM - (BOTTOM - TOP) * share, 2)

    lines = []
    for x, result in zip(places, results, strict=True):
        if result.low is not None and result.high is not None:
            low, high = y(result.low), y(result.high)
            lines.append(Line(x, low, x, high, "whisker"))
            lines += [Line(x - CAP / 2, at, x + CAP / 2, at, "whisker") for at in (low, high)]
    best = next((r for r in results if r.is_best), None)
    return Chart(
        key=key,
        title=title,
        description=f"Best: {y_label} {number(best.value)} at {x_label} {_word(best.at)}."
        if best
        else "Nothing measured yet.",
        x_label=x_label,
        y_label=y_label,
        x_ticks=ticks,
        y_ticks=[Tick(y(value), number(value)) for value in y_ticks],
        lines=lines,
        dots=[
            Dot(x, y(r.value), "good" if r.is_best else "plain", 6 if r.is_best else 4.5)
            for x, r in sorted(zip(places, results, strict=True), key=lambda pair: pair[1].is_best)
        ],
        columns=["Trial", x_label, y_label],
        rows=[[r.label, _word(r.at), number(r.value)] for r in results],
    )


def _along(numbers: Sequence[float], log: bool | None) -> tuple[list[float], list[Tick]]:
    low, high = min(numbers), max(numbers)
    if log is None:
        log = low > 0 and high / low >= LOG_FROM
    if log and low > 0 and high > low:
        first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        powers = range(first, last + 1)
        ticks = [Tick(_share((p - first) / (last - first)), f"{10.0**p:g}") for p in powers]
        return [_share((math.log10(n) - first) / (last - first)) for n in numbers], ticks[
            :: len(ticks) // 7 + 1
        ]
    marks = nice_ticks(low, high)
    span = marks[-1] - marks[0]
    return (
        [_share((n - marks[0]) / span) for n in numbers],
        [Tick(_share((mark - marks[0]) / span), f"{mark:g}") for mark in marks],
    )


def _in_columns(words: Sequence[str]) -> tuple[list[float], list[Tick]]:
    kinds = list(dict.fromkeys(words))
    width = (RIGHT - LEFT) / max(len(kinds), 1)
    middles = {word: round(LEFT + width * (place + 0.5), 2) for place, word in enumerate(kinds)}
    return [middles[word] for word in words], [Tick(x, shortened(w, width - 4)) for w, x in middles.items()]


def _share(share: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * share, 2)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
