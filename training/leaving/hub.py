"""What this process knows of a hub: where it is, and the token. A worker alone needs it."""

from pathlib import Path

from django.conf import settings


def token() -> str:
    """From the environment, or the file that it names; empty when there is none."""
    if settings.HUB_TOKEN:
        return str(settings.HUB_TOKEN)
    if not settings.HUB_TOKEN_FILE:
        return ""
    try:
        return Path(settings.HUB_TOKEN_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def reached() -> str:
    """The hub that this process may push to; empty without a token."""
    return str(settings.HUB_ENDPOINT) if token() else ""
