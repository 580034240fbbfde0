"""Judging on a phone, without JavaScript, by ear, and over a slow line."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Project, Skip
from tests.browser.conftest import SignIn
from tests.browser.judging import (
    NewPage,
    Open,
    expect_mine,
    held,
    held_prompt,
    rank_of,
    rating_of_two,
    too_small,
    values,
)
from tests.browser.stories import make_round


def test_the_question_at_hand_is_in_sight_below_a_long_conversation(
    open_as_ann: Open, project: Project
) -> None:
    round = make_round(project)
    turns = [{"role": role, "content": "word " * 300} for _ in range(6) for role in ("user", "assistant")]
    prompt = held_prompt(round)
    prompt.messages = [*turns, {"role": "user", "content": "And then?"}]
    prompt.html = []
    prompt.save()
    page = open_as_ann(round)
    expect(page.locator(".conversation.latest")).to_contain_text("And then?")
    expect(page.locator(".conversation.latest")).to_be_in_viewport(ratio=1)
    scrolled = page.locator(".conversation.earlier").evaluate(
        "e => e.scrollHeight - e.scrollTop - e.clientHeight"
    )
    assert scrolled < 2


def test_a_score_is_announced(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(rating_of_two(project))
    page.keyboard.press("4")
    expect(page.locator("#announcement")).to_have_text("Kindness: 4")


def test_a_small_screen_shows_the_task_before_the_guidelines(
    new_page: NewPage, sign_in: SignIn, ann: User, project: Project
) -> None:
    round = make_round(project)
    page = new_page(viewport={"width": 390, "height": 700}, has_touch=True, is_mobile=True)
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    expect(page.get_by_text("Prefer the kind one.")).to_be_hidden()
    expect(page.locator(".completion").first).to_be_in_viewport()
    page.set_viewport_size({"width": 1440, "height": 900})
    page.reload()
    expect(page.get_by_text("Prefer the kind one.")).to_be_visible()  # nobody chose to hide them


def test_a_text_of_a_ranking_can_be_scrolled_over_by_touch_and_dragged_by_its_handle(
    new_page: NewPage, sign_in: SignIn, ann: User, project: Project
) -> None:
    round = make_round(project, "ranking")
    page = new_page(viewport={"width": 390, "height": 700}, has_touch=True, is_mobile=True)
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    touch = "element => getComputedStyle(element).touchAction"
    assert page.locator(".rank").first.evaluate(touch) == "auto"
    assert page.locator(".handle").first.evaluate(touch) == "none"


def test_the_next_task_is_announced_and_focused(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    page.keyboard.press("1")
    expect(page.locator("#announcement")).to_have_text("Saved. Task 2.")
    expect(page.locator("#task")).to_be_focused()


@pytest.mark.parametrize("kind", ["rating", "comparison", "ranking"])
def test_it_works_without_javascript(
    new_page: NewPage, sign_in: SignIn, ann: User, project: Project, kind: str
) -> None:
    round = make_round(project, kind)
    page = new_page(java_script_enabled=False)
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    shown = held().shown
    if kind == "rating":
        page.locator('[name="score-overall"][value="3"]').check(force=True)
        page.get_by_role("button", name="Save").click()
        expected: Any = {"scores": {"overall": 3}}
    elif kind == "comparison":
        page.get_by_role("button", name="A is far better").click()
        expected = {"outcome": "preferred", "preferred": shown[0], "strength": 4}
    else:
        for pk, rank in zip(shown, ["2", "1", "", "2"], strict=True):
            rank_of(page, pk).fill(rank)
        page.get_by_role("button", name="Save").click()
        expected = {"ranks": {str(shown[0]): 2, str(shown[1]): 1, str(shown[3]): 2}}
    expect_mine(page, 1)
    assert values() == [expected]
    page.locator("#skip summary").click()
    page.get_by_role("button", name="I cannot judge this").click()
    assert Skip.objects.count() == 1
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".notice.good")).to_contain_text("Your last label is taken back")


@pytest.mark.parametrize("width", [390, 320])
@pytest.mark.parametrize("kind", ["rating", "comparison", "ranking"])
def test_on_a_phone_everything_fits_and_can_be_hit(
    new_page: NewPage, sign_in: SignIn, ann: User, project: Project, kind: str, width: int
) -> None:
    round = make_round(project, kind, earlier=True)
    page = new_page(viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    sign_in(page, ann)
    for path in ("/", f"/rounds/{round.pk}/judge/"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert too_small(page) == []
    expect(page.locator(".answer-bar")).to_be_in_viewport(ratio=0.9)


@pytest.mark.parametrize("kind", ["rating", "comparison", "ranking"])
def test_the_first_task_weighs_at_most_100_kilobytes(
    page: Page, sign_in: SignIn, ann: User, project: Project, kind: str
) -> None:
    round = make_round(project, kind, earlier=True)
    sign_in(page, ann)
    chrome = page.context.new_cdp_session(page)
    chrome.send("Network.enable")
    sizes: list[float] = []
    chrome.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(f"/rounds/{round.pk}/judge/", wait_until="networkidle")
    print(json.dumps({"kind": kind, "requests": len(sizes), "bytes": sum(sizes)}))
    assert len(sizes) >= 5
    assert sum(sizes) <= 100_000
