"""A way back for people who would end in front of an empty page."""

from collections.abc import Callable
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, resolve_url
from django.utils.http import url_has_allowed_host_and_scheme


def way_back(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Addresses that only take forms show nothing to a browser that opens them. Who is sent to sign in by
    such a form comes back to the page it stood on; who opens its address goes to the start.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if response.status_code == 405 and request.headers.get("Sec-Fetch-Mode") == "navigate":
            return redirect("home")
        if request.method == "POST" and _asks_to_sign_in(response):
            page = urlsplit(request.headers.get("Referer", "")).path or "/"
            if url_has_allowed_host_and_scheme(page, allowed_hosts=None):
                return HttpResponseRedirect(f"{resolve_url(settings.LOGIN_URL)}?{urlencode({'next': page})}")
        return response

    return middleware


def _asks_to_sign_in(response: HttpResponse) -> bool:
    return isinstance(response, HttpResponseRedirect) and urlsplit(response.url).path == resolve_url(
        settings.LOGIN_URL
    )
