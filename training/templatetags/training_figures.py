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
def about(value: timedelta | None) -> str:
    """A duration as people say it.

    >>> about(timedelta(seconds=42)), about(timedelta(minutes=12)), about(timedelta(hours=3.5))
    ('about 42 s', 'about 12 min', 'about 3.5 h')
    """
    if value is None:
        return ""
    seconds = value.total_seconds()
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
