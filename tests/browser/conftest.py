"""A real server and a real Chromium.

`server` is the address of uvicorn in a thread of this process, on the test database and with static files
as whitenoise serves them (compressed). `sign_in(page, user)` makes a page a user's; each page fails its test
when Chromium's console reports an error, a broken Content-Security-Policy included. Without a browser these
tests are skipped and say so.
"""

import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client, override_settings
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from labeling.models import Round

# Playwright keeps an event loop in this thread; Django would refuse the ORM beside it.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HERE = Path(__file__).parent
# Chromium reports every refused request as an error; pages that refuse on purpose say so themselves.
EXPECTED = "the server responded with a status of "

SignIn = Callable[[Page, User], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None and not os.environ.get("RATCHET_REQUIRE_ALL_TESTS"):
                item.add_marker(pytest.mark.skip(reason="no chromium on this machine (apt install chromium)"))


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    return {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}


@pytest.fixture(scope="session")
def browser_context_args(server: str) -> dict[str, Any]:
    return {"base_url": server, "viewport": {"width": 1440, "height": 900}, "reduced_motion": "reduce"}


@pytest.fixture(scope="session")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running application. A test that uses it needs `transactional_db`."""
    static = tmp_path_factory.mktemp("static")
    compressed = {
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
    }
    with override_settings(STATIC_ROOT=static, STORAGES=compressed):
        call_command(
            "collectstatic", verbosity=0, interactive=False, ignore_patterns=["admin", "rest_*", "drf*"]
        )
        sys.modules.pop("rlhf_site.asgi", None)
        from rlhf_site.asgi import application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="warning", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 15
    while not running.started:
        if time.monotonic() > deadline:
            pytest.fail("the server did not start within 15 s")
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(10)


@pytest.fixture(autouse=True)
def _committed_rows(transactional_db: None) -> None:
    """The server reads what a test wrote, so nothing here may hide in a transaction."""


@pytest.fixture
def page(page: Page) -> Iterator[Page]:
    """A page whose console must stay clean. A test that expects an error clears `page.problems`."""
    problems = watch(page)
    page.problems = problems  # type: ignore[attr-defined]
    yield page
    assert not problems, problems


def watch(page: Page) -> list[str]:
    """Collect what goes wrong in a page from now on."""
    problems: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and EXPECTED not in message.text:
            problems.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: problems.append(str(error)))
    return problems


@pytest.fixture
def sign_in(server: str) -> SignIn:
    """Give the browser a session of the user, without the page for signing in."""

    def sign_in_as(page: Page, user: User) -> None:
        client = Client()
        client.force_login(user)
        page.context.add_cookies(
            [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": server}]
        )

    return sign_in_as


@pytest.fixture
def new_page(browser: Browser, server: str) -> Iterator[Callable[..., Page]]:
    """Pages in contexts of their own: another person, a phone, no JavaScript."""
    contexts = []

    def make(**how: Any) -> Page:
        context = browser.new_context(base_url=server, reduced_motion="reduce", **how)
        contexts.append(context)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def open_as_ann(page: Page, sign_in: SignIn, ann: User) -> Callable[[Round], Page]:
    def open_round(round: Round) -> Page:
        # Chromium begins to intercept a little after it was told to: a page that is to meet broken answers
        # later has to be intercepted from its first request on, or one slips through on a busy machine.
        page.route("**/nowhere/", lambda route: route.continue_())
        sign_in(page, ann)
        page.goto(f"/rounds/{round.pk}/judge/")
        expect(page.locator("#task")).to_be_visible()
        return page

    return open_round
