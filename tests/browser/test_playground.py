"""The playground with a real worker, real policies in real processes, and a real browser."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.db import connection
from playwright.sync_api import Page, expect

from labeling.models import Policy, Project
from tests import factories
from tests.training.outside import Workers
from tests.training.stage import is_alive, wait_for
from training.models import ChatSide, ServedPolicy
from training.playground import chats

pytestmark = [pytest.mark.training, pytest.mark.slow]

LONG = 60_000  # milliseconds: two processes import torch
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def policies(project: Project, tmp_path: Path) -> list[Policy]:
    """The embedded default, and the same by another name: what they know differs for nobody but us."""
    pytest.importorskip("torch")
    made = []
    for name in ("starter", "candidate <b>"):
        folder = tmp_path / "models" / name[:7]
        shutil.copytree(django_settings.STARTER_POLICY, folder)
        policy = factories.make_policy(project, name)
        policy.location = str(folder)
        policy.save()
        made.append(policy)
    project.current_policy = made[0]
    project.save()
    return made


@pytest.fixture
def workers(tmp_path: Path, policies: list[Policy]) -> Iterator[Workers]:
    """On the database of the test and its server."""
    url = (
        f"sqlite:///{connection.settings_dict['NAME']}"
        if connection.vendor == "sqlite"
        else os.environ["RATCHET_DATABASE"]
    )
    crew = Workers(url=url, var=tmp_path, behaviour="", lease=4, RATCHET_STANDBY="false", OMP_NUM_THREADS="1")
    yield crew
    crew.stop_all()


@pytest.fixture
def chat_page(
    page: Page, sign_in: Callable[..., None], mia: User, project: Project, policies: list[Policy]
) -> Page:
    sign_in(page, mia)
    page.goto(f"/projects/{project.slug}/playground/")
    return page


def begin(page: Page) -> None:
    page.get_by_label("Left").select_option(label="starter")
    page.get_by_label("Right").select_option(label="candidate <b>")
    page.get_by_role("button", name="Chat with both").click()


def answers(page: Page) -> Any:
    return page.locator(".answer:not(.coming)")


def children(worker_pid: int) -> list[int]:
    """Processes of ours that hold policies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if "training.rlhf.serve" in command and parent == worker_pid:
                found.append(int(entry.name))
    return found


def test_two_policies_answer_side_by_side_and_the_conversation_goes_on(
    chat_page: Page, workers: Workers, project: Project, mia: User
) -> None:
    page = chat_page
    begin(page)
    expect(page.get_by_text("No training worker is alive").first).to_be_visible()
    workers.start("only")
    box = page.get_by_label("Your message")
    box.fill("Tell me about <i>a fox</i>.")
    box.press("Control+Enter")
    expect(answers(page)).to_have_count(2, timeout=LONG)
    expect(page.locator(".asked .prose").first).to_have_text("Tell me about <i>a fox</i>.")
    expect(page.locator(".answer .meta").first).to_contain_text("the first after")
    expect(page.get_by_role("link", name="candidate <b>")).to_be_visible()
    expect(box).to_have_value("")
    expect(box).to_be_focused()
    expect(page.get_by_text("In memory", exact=True)).to_have_count(2)
    first = ChatSide.objects.order_by("place")[0]
    assert [one["role"] for one in first.messages] == ["user", "assistant"]

    box.fill("And then?")
    page.get_by_role("button", name="Send to both").click()
    expect(answers(page)).to_have_count(4, timeout=LONG)
    for conversation in page.locator(".said").all():  # what was said last is in sight
        below = conversation.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight")
        assert below < 2
    left, right = ChatSide.objects.order_by("place")
    assert len(left.messages) == len(right.messages) == 4
    assert left.messages != right.messages  # each with its own history

    page.get_by_role("button", name="Go on with this one").first.click()
    wait_for(lambda: ChatSide.objects.get(pk=right.pk).messages == left.messages)
    page.get_by_role("button", name="Clear the conversation").click()
    expect(page.get_by_text("Nothing said yet.")).to_have_count(2)


def test_settings_of_a_side_hold_for_its_next_answer(
    chat_page: Page, workers: Workers, project: Project, mia: User, policies: list[Policy]
) -> None:
    page = chat_page
    begin(page)
    workers.start("only")
    for number, side in enumerate(page.locator(".side").all()):
        side.locator(".side-settings summary").click()
        side.get_by_label("Policy").select_option(label="starter")
        side.get_by_label("Seed").fill("7")
        side.get_by_label("Longest answer, tokens").fill(str(3 + 5 * number))
        side.get_by_role("button", name="Use from the next answer on").click()
        expect(side.locator(".side-settings summary")).to_contain_text("seed 7")
    page.get_by_label("Your message").fill("Tell me about a fox.")
    page.get_by_role("button", name="Send to both").click()
    expect(answers(page)).to_have_count(2, timeout=LONG)
    short, longer = (side.messages[-1] for side in ChatSide.objects.order_by("place"))
    assert (short["tokens"], short["finish"], short["seed"]) == (3, "length", 7)
    assert longer["content"].startswith(short["content"])
    expect(page.get_by_text("cut at the limit").first).to_be_visible()


def test_a_child_that_is_killed_is_told_of_and_comes_back_and_none_outlives_its_worker(
    chat_page: Page, workers: Workers
) -> None:
    page = chat_page
    begin(page)
    worker = workers.start("only")
    expect(page.get_by_text("In memory", exact=True)).to_have_count(2, timeout=LONG)
    pids = children(worker.pid)
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    expect(page.get_by_text("Could not be loaded")).to_be_visible(timeout=LONG)
    page.get_by_label("Your message").fill("Tell me about a fox.")
    page.get_by_role("button", name="Send to both").click()
    expect(answers(page)).to_have_count(2, timeout=LONG)
    pids = children(worker.pid)
    worker.kill()
    worker.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in pids), seconds=5)


def test_without_javascript_a_form_brings_both_answers(
    new_page: Callable[..., Page],
    sign_in: Callable[..., None],
    workers: Workers,
    mia: User,
    project: Project,
    policies: list[Policy],
) -> None:
    chats.begin(project=project, user=mia, policies=policies)
    workers.start("only")
    wait_for(lambda: ServedPolicy.objects.exclude(address="").count() == 2, seconds=60)
    page = new_page(java_script_enabled=False, viewport=PHONE)
    sign_in(page, mia)
    page.goto(f"/projects/{project.slug}/playground/")
    page.get_by_label("Your message").fill("Tell me about a fox.")
    page.get_by_role("button", name="Send to both").click()
    expect(answers(page)).to_have_count(2, timeout=LONG)
    page.get_by_role("button", name="Ask again").first.click()
    expect(answers(page)).to_have_count(2, timeout=LONG)


def test_who_does_not_want_to_wait_stops_and_asks_again(chat_page: Page, policies: list[Policy]) -> None:
    page = chat_page
    begin(page)
    page.get_by_label("Your message").fill("Tell me about a fox.")
    page.get_by_role("button", name="Send to both").click()
    left = page.locator(".side").first
    expect(left.get_by_text("No training worker is alive")).to_be_visible()
    left.get_by_role("button", name="Stop").click()
    expect(left.get_by_text("Stopped before it began.")).to_be_visible()
    left.get_by_role("button", name="Ask again").click()
    expect(left.get_by_role("button", name="Stop")).to_be_visible()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1440, "height": 900}], ids=["phone", "desk"])
def test_the_playground_is_not_wider_than_its_window(
    viewport: dict[str, int],
    new_page: Callable[..., Page],
    sign_in: Callable[..., None],
    mia: User,
    project: Project,
    policies: list[Policy],
) -> None:
    chat = chats.begin(project=project, user=mia, policies=policies)
    page = new_page(viewport=viewport)
    sign_in(page, mia)
    words = "x" * 300 + "\n\n```\n" + "long line " * 40 + "\n```"
    for side in chats.sides_of(chat):
        said = {"role": "assistant", "content": words, "policy": "starter", "finish": "stop", "tokens": 9}
        ChatSide.objects.filter(pk=side.pk).update(
            messages=[{"role": "user", "content": words}, {**said, "first_ms": 12, "seconds": 1, "seed": 3}]
        )
    for address in ("", "?policy=1"):
        page.goto(f"/projects/{project.slug}/playground/{address}")
        page.evaluate("document.querySelectorAll('main details').forEach(each => each.open = true)")
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0, address
