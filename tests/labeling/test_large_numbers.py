"""Addresses with a number that no database can hold: nothing is there."""

from collections.abc import Iterable, Iterator

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.urls.converters import IntConverter

TOO_LARGE = 10**23
REST = {"slug": "stories", "kind": "comparison", "name": "manifest.json"}


def numbered(patterns: list[URLPattern | URLResolver]) -> Iterator[tuple[str, str]]:
    """Name and address of every page with a number in its address, but for the administration's."""
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            values = {
                n: TOO_LARGE if isinstance(c, IntConverter) else REST.get(n) for n, c in parts_of(pattern)
            }
            if TOO_LARGE in values.values():
                yield str(pattern.name), reverse(str(pattern.name), kwargs=values)
        elif pattern.namespace is None:
            yield from numbered(pattern.url_patterns)


def parts_of(pattern: URLPattern) -> Iterable[tuple[str, object]]:
    return pattern.pattern.converters.items()


PAGES = dict(numbered(get_resolver().url_patterns))


def test_pages_with_numbers_are_found_at_all() -> None:
    assert {"round", "save_label", "skip", "renew", "run", "policy", "api_label", "api_run"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_number_that_no_store_can_hold_is_not_found(client: Client, mia: User, name: str) -> None:
    client.force_login(mia)
    response = client.get(PAGES[name])
    if response.status_code == 405:
        response = client.post(PAGES[name], {})
    assert response.status_code == 404
