"""A share with its interval as places on a line from 0 to 100 %; the template draws it."""

from dataclasses import dataclass

from labeling.agreement import WinRate


@dataclass(frozen=True)
class Interval:
    """In percent, rounded for people: 64, 55, 72."""

    rate: float
    low: float
    high: float


def interval_of(win: WinRate) -> Interval:
    """
    >>> interval_of(WinRate(rate=0.6412, low=0.55, high=0.7249, n=132))
    Interval(rate=64.1, low=55.0, high=72.5)
    """
    return Interval(*(round(100 * share, 1) for share in (win.rate, win.low, win.high)))
