"""What the API reads of a request: whose token it is, and JSON that can be kept. The rest is refused here.

REST framework imports this while it loads its own views, so it imports none of them.
"""

import math
from collections.abc import Mapping
from typing import IO, Any

import knox.auth
from rest_framework import parsers
from rest_framework.exceptions import AuthenticationFailed, ParseError

DEEPEST = 50  # objects and lists inside each other; nothing that the API takes has ten


class JSONParser(parsers.JSONParser):
    """JSON that every part of the house can keep, send and walk through; the rest is a 400."""

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        try:
            value: dict[str, Any] = super().parse(stream, media_type, parser_context)
        except RecursionError as error:
            raise ParseError(_TOO_DEEP) from error
        _refuse_what_cannot_be_kept(value)
        return value


_TOO_DEEP = f"The JSON is nested too deeply: send at most {DEEPEST} objects and lists inside each other."


def _refuse_what_cannot_be_kept(value: object) -> None:
    ahead = [(value, 0)]  # a stack of our own: no depth of the request can exhaust Python's
    while ahead:
        one, depth = ahead.pop()
        if isinstance(one, str):
            _refuse_odd_text(one)
        elif isinstance(one, float) and not math.isfinite(one):
            raise ParseError("A number is too large: JSON has no infinity.")
        elif isinstance(one, dict | list):
            if depth >= DEEPEST:
                raise ParseError(_TOO_DEEP)
            inside = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            ahead.extend((part, depth + 1) for part in inside)


def _refuse_odd_text(text: str) -> None:
    """PostgreSQL keeps no NUL, and half a surrogate pair cannot be sent back, not even in a message."""
    if "\0" in text:
        raise ParseError(f"A text has a NUL character at position {text.index(chr(0))}: leave it out.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParseError(
            f"A text has half a surrogate pair at position {error.start}: send whole characters."
        ) from error


class TokenAuthentication(knox.auth.TokenAuthentication):
    def authenticate_credentials(self, token: bytes) -> Any:
        if not token.isalnum():  # what is no token may not even be text
            raise AuthenticationFailed("Invalid token.")
        return super().authenticate_credentials(token)
