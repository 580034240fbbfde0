"""How figures of training are written on pages."""

from datetime import timedelta

from django import template

from training import charts

register = template.Library()


@register.filter
def share(value: float | None) -> str:
    return "–" if value is None else charts.percent(value)


@register.filter
def figure(value: float | None) -> str:
    """A number with the digits that say something.

    >>> figure(0.123456), figure(None), figure(1e-05)
    ('0.123', '–', '1e-05')
    """
    return "–" if value is None else charts.number(value)


@register.filter
def nats(value: float | None) -> str:
    """A KL divergence: one that is nothing but noise reads as nothing.

    >>> nats(8.3e-06), nats(7.84), nats(22.81), nats(None)
    ('0.00', '7.84', '22.8', '–')
    """
    if value is None:
        return "–"
    return f"{value:.1f}" if value >= 10 else f"{abs(value):.2f}"


@register.filter
def about(value: timedelta | None) -> str:
    """Time left as people say it.

    >>> about(timedelta(seconds=42)), about(timedelta(minutes=12)), about(timedelta(hours=3.5))
    ('about 42 s', 'about 12 min', 'about 3.5 h')
    """
    if value is None:
        return ""
    return f"about {duration(value.total_seconds())}"


@register.filter
def duration(seconds: float) -> str:
    """
    >>> duration(42.3), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@register.filter
def counted(value: float) -> str:
    """A large count in short.

    >>> counted(860_000), counted(1_540_000_000), counted(12)
    ('860 k', '1.54 B', '12')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
