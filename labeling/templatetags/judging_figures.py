"""How figures of judging are written on pages."""

from django import template

from labeling.agreement import Share
from labeling.round_report import STRENGTHS

register = template.Library()


@register.filter
def share(value: Share) -> str:
    """
    >>> share(Share(0.666, 3)), share(Share())
    ('67 %', '–')
    """
    return "–" if value.rate is None else f"{100 * value.rate:.0f} %"


@register.filter
def strength_name(strength: int) -> str:
    return STRENGTHS.get(strength, str(strength))
