"""Messages of imports name columns in backticks, for a terminal; a page sets them as code."""

import re

from django import template
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

register = template.Library()


@register.filter
def column_names(text: str) -> SafeString:
    """Escape a message, and set what stands between backticks as code."""
    return mark_safe(re.sub(r"`([^`]{1,60})`", r"<code>\1</code>", escape(text)))  # noqa: S308 - escaped above
