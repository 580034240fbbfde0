"""What the API answers when something goes wrong: always JSON that says why."""

import logging
from typing import Any

from django.core.signals import got_request_exception
from rest_framework.response import Response
from rest_framework.views import exception_handler

log = logging.getLogger(__name__)


def answer_in_json(error: Exception, context: dict[str, Any]) -> Response:
    """REST framework's answer where it has one; else 500 with a detail, and the traceback in the log."""
    response: Response | None = exception_handler(error, context)
    if response is not None:
        return response
    request = context["request"]
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    # Django's own way to tell whoever watches for failures, as it does for pages.
    got_request_exception.send(sender=type(context["view"]), request=request)
    return Response(
        {"detail": "The server failed to answer this, and the fault is its own. Its log says why."},
        status=500,
    )
