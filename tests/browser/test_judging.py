"""A rater at work in Chromium: each kind by mouse and by keys stores exactly the label that was meant."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Locator, Page, expect

from labeling.assignment import next_assignment
from labeling.blinding import blind_name, by_blind_name
from labeling.models import Assignment, Label, Project, Prompt, Protocol, Round, Skip
from labeling.rounds import close_round
from tests.browser.conftest import SignIn, watch
from tests.browser.stories import make_round

NewPage = Callable[..., Page]
Open = Callable[[Round], Page]


@pytest.fixture
def open_as_ann(page: Page, sign_in: SignIn, ann: User) -> Open:
    def open_round(round: Round) -> Page:
        sign_in(page, ann)
        page.goto(f"/rounds/{round.pk}/judge/")
        expect(page.locator("#task")).to_be_visible()
        return page

    return open_round


def held() -> Assignment:
    return Assignment.objects.get(state=Assignment.State.LEASED)


def held_prompt(round: Round) -> Prompt:
    """The prompt that the next rater gets."""
    first = Assignment.objects.filter(round=round, state=Assignment.State.OPEN).order_by("position").first()
    assert first is not None
    return first.task.prompt


def values() -> list[Any]:
    return [label.value for label in Label.objects.order_by("pk")]


def expect_mine(page: Page, number: int) -> None:
    """Wait for the next task: by then the label is stored."""
    expect(page.locator(".task-progress b")).to_have_text(str(number))


# Comparison


def test_a_click_on_the_scale_saves_and_shows_the_next_task(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    first = held()
    page.get_by_role("button", name="B is clearly better").click()
    expect_mine(page, 1)
    assert values() == [{"outcome": "preferred", "preferred": first.shown[1], "strength": 3}]
    expect(page.locator("#answer")).to_have_attribute("action", f"/assignments/{held().pk}/label/")


@pytest.mark.parametrize(
    ("key", "place", "strength"),
    [("1", 0, 4), ("2", 0, 3), ("3", 0, 2), ("4", 0, 1), ("5", 1, 1), ("6", 1, 2), ("7", 1, 3), ("8", 1, 4)],
)
def test_one_key_answers_a_comparison(
    open_as_ann: Open, project: Project, key: str, place: int, strength: int
) -> None:
    page = open_as_ann(make_round(project))
    shown = held().shown
    page.keyboard.press(key)
    expect_mine(page, 1)
    assert values() == [{"outcome": "preferred", "preferred": shown[place], "strength": strength}]


def test_t_is_a_tie_and_b_is_both_bad(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    page.keyboard.press("t")
    expect_mine(page, 1)
    page.keyboard.press("b")
    expect_mine(page, 2)
    assert values() == [{"outcome": "tie"}, {"outcome": "both_bad"}]


def test_a_key_counts_from_the_moment_the_next_task_is_there(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    page.evaluate(
        """new MutationObserver((_, observer) => {
          observer.disconnect();
          const b = new KeyboardEvent("keydown", {key: "b", bubbles: true});
          setTimeout(() => document.body.dispatchEvent(b));
        }).observe(document.getElementById("task").parentElement, {childList: true})"""
    )
    page.keyboard.press("t")
    expect_mine(page, 2)
    assert values() == [{"outcome": "tie"}, {"outcome": "both_bad"}]


def test_arrows_walk_the_scale_and_enter_saves(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    shown = held().shown
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    expect_mine(page, 1)
    assert values() == [{"outcome": "preferred", "preferred": shown[0], "strength": 3}]


def test_a_protocol_without_ties_offers_none(open_as_ann: Open, project: Project) -> None:
    round = make_round(project)
    Protocol.objects.update(options={"strengths": 2, "tie": False, "both_bad": False})
    page = open_as_ann(round)
    shown = held().shown
    expect(page.locator(".scale button")).to_have_count(4)
    page.keyboard.press("t")
    page.keyboard.press("b")
    page.keyboard.press("4")
    expect_mine(page, 1)
    assert values() == [{"outcome": "preferred", "preferred": shown[1], "strength": 2}]


def test_what_is_on_the_left_is_what_the_assignment_says(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    first = held()
    texts = {c.pk: c.text for c in first.task.completions.all()}
    left = page.locator(".completion.side-1 .prose")
    expect(left).to_contain_text(texts[first.shown[0]][:30])


# Rating


def test_scores_by_keys(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(_rating_of_two(project))
    for key in ("4", "2", "Enter"):
        page.keyboard.press(key)
    expect_mine(page, 1)
    assert values() == [{"scores": {"kind": 4, "topic": 2}}]


def test_arrows_go_back_to_a_score(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(_rating_of_two(project))
    for key in ("4", "2", "ArrowUp", "5", "Enter"):
        page.keyboard.press(key)
    expect_mine(page, 1)
    assert values() == [{"scores": {"kind": 5, "topic": 2}}]


def test_scores_by_mouse(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(_rating_of_two(project))
    page.get_by_role("group", name="Kindness").get_by_role("radio", name="1").check()
    page.get_by_role("group", name="On topic").get_by_role("radio", name="5").check()
    page.get_by_role("button", name="Save").click()
    expect_mine(page, 1)
    assert values() == [{"scores": {"kind": 1, "topic": 5}}]


def test_a_missing_score_is_asked_for(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(_rating_of_two(project))
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="On topic").get_by_role("radio").first).to_be_focused()
    expect(page.locator('[name="score-kind"][value="3"]')).to_be_checked()
    assert values() == []


# Ranking


def test_what_is_seen_after_dragging_is_what_is_stored(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking"))
    for place in (3, 1, 2):  # each is dragged from below onto the line, so it comes to stand last above it
        _drag(page, _text(page, held().shown[place]), page.locator(".unranked-line"))
    seen = _seen(page)
    page.get_by_role("button", name="Save").click()
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(pk): rank for pk, rank in seen.items()}}]
    assert sorted(seen.values()) == [1, 2, 3]


def test_dragging_within_the_ranking_swaps_the_numbers(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, c = held().shown
    for pk, rank in ((a, "1"), (b, "2"), (c, "3")):
        _rank_of(page, pk).fill(rank)
        _rank_of(page, pk).blur()
    _drag(page, _text(page, c), _text(page, a))
    seen = _seen(page)
    assert seen[c] < seen[a] < seen[b] or seen[a] < seen[c] < seen[b]
    page.keyboard.press("Enter")
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(pk): rank for pk, rank in seen.items()}}]


def test_ranking_by_keys_with_a_tie_and_one_left_out(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking"))
    a, b, c, d = held().shown
    _text(page, c).focus()
    page.keyboard.press("1")  # c
    _text(page, a).focus()
    page.keyboard.press("1")  # a, c
    _text(page, d).focus()
    page.keyboard.press("3")  # a, c, d
    page.keyboard.press("t")  # a, c = d
    assert _seen(page) == {a: 1, c: 2, d: 2}
    page.keyboard.press("Shift+ArrowUp")  # a, d, c
    assert _seen(page) == {a: 1, d: 2, c: 3}
    page.keyboard.press("Enter")
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(a): 1, str(d): 2, str(c): 3}}]
    assert b not in _seen(page)


def test_a_tie_is_stored(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, c = held().shown
    for pk, rank in ((b, "1"), (a, "2"), (c, "2")):
        _rank_of(page, pk).fill(rank)
        _rank_of(page, pk).blur()
    expect(_text(page, c).get_by_role("button", name="Tie")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Save").click()
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(b): 1, str(a): 2, str(c): 2}}]


def test_all_can_be_ranked_as_they_stand(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, c = held().shown
    _text(page, c).get_by_role("button", name="up").click()
    page.get_by_role("button", name="Rank all").click()
    order = _seen(page)
    assert sorted(order.values()) == [1, 2, 3] and set(order) == {a, b, c}
    page.keyboard.press("Enter")
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(pk): rank for pk, rank in order.items()}}]


def test_moving_by_buttons(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, _ = held().shown
    _text(page, a).get_by_role("button", name="up").click()
    _text(page, b).get_by_role("button", name="up").click()
    _text(page, a).get_by_role("button", name="down").click()
    assert _seen(page) == {b: 1, a: 2}


def test_taking_one_out_of_a_tie_of_three_leaves_a_tie_of_two(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking"))
    a, b, c, d = held().shown
    for pk, rank in ((a, "1"), (b, "1"), (c, "1"), (d, "2")):
        _rank_of(page, pk).fill(rank)
        _rank_of(page, pk).blur()
    assert _seen(page) == {a: 1, b: 1, c: 1, d: 2}
    _text(page, a).focus()
    page.keyboard.press("0")
    assert _seen(page) == {b: 1, c: 1, d: 2}


# The other keys


def test_question_mark_shows_the_keys_and_hides_them(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("1")  # no label while the keys are shown
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert values() == []


def test_u_takes_the_last_label_back_and_marks_it(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    first = held()
    page.keyboard.press("2")
    expect_mine(page, 1)
    page.keyboard.press("u")
    expect(page.locator(".notice.good")).to_contain_text("Your last label is taken back")
    expect(page.locator('.scale [aria-current="true"]')).to_have_attribute(
        "value", f"{blind_name(first.shown[0])}:3"
    )
    page.keyboard.press("7")
    expect_mine(page, 1)
    assert held() != first
    first.refresh_from_db()
    assert first.label is not None
    assert first.label.value == {"outcome": "preferred", "preferred": first.shown[1], "strength": 3}


def test_s_and_a_digit_skip_with_a_reason(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    first = held()
    page.keyboard.press("s")
    page.keyboard.press("2")
    expect(page.locator("#answer")).not_to_have_attribute("action", f"/assignments/{first.pk}/label/")
    assert [skip.reason for skip in Skip.objects.all()] == ["The text is broken"]
    assert values() == []


def test_letters_typed_as_a_reason_are_no_keys(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    first = held()
    page.locator("#skip summary").click()
    page.get_by_placeholder("Another reason").press_sequentially("but 1 tie?")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).not_to_have_attribute("action", f"/assignments/{first.pk}/label/")
    assert [skip.reason for skip in Skip.objects.all()] == ["but 1 tie?"]


def test_g_hides_the_guidelines_and_they_stay_hidden(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    expect(page.get_by_text("Prefer the kind one.")).to_be_visible()
    page.keyboard.press("g")
    expect(page.get_by_text("Prefer the kind one.")).to_be_hidden()
    page.reload()
    expect(page.get_by_text("Prefer the kind one.")).to_be_hidden()


def test_a_held_key_answers_once(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    page.keyboard.down("1")
    for _ in range(5):
        page.keyboard.down("1")
    page.keyboard.up("1")
    expect_mine(page, 1)
    assert len(values()) == 1


# Accidents


def test_a_double_click_is_one_label(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    page.get_by_role("button", name="Tie").dblclick()
    expect_mine(page, 1)
    assert len(values()) == 1


@pytest.mark.parametrize("gap", [60, 150, 300])
def test_a_slow_double_click_does_not_answer_the_task_that_nobody_has_read(
    open_as_ann: Open, project: Project, gap: int
) -> None:
    page = open_as_ann(make_round(project))
    box = page.get_by_role("button", name="Tie").bounding_box()
    assert box is not None
    x, y = box["x"] + 20, box["y"] + 10
    page.mouse.click(x, y)
    expect_mine(page, 1)
    page.wait_for_timeout(gap)
    page.mouse.click(x, y)
    page.wait_for_timeout(600)
    expect_mine(page, 1)
    page.mouse.click(x, y)  # read by now
    expect_mine(page, 2)


@pytest.mark.parametrize("gap", [60, 200])
def test_a_key_pressed_twice_answers_once(open_as_ann: Open, project: Project, gap: int) -> None:
    page = open_as_ann(make_round(project))
    page.keyboard.press("1")
    expect_mine(page, 1)
    page.wait_for_timeout(gap)
    page.keyboard.press("1")
    page.wait_for_timeout(600)
    expect_mine(page, 1)
    page.keyboard.press("1")
    expect_mine(page, 2)
    page.keyboard.press("u")
    expect_mine(page, 1)
    page.keyboard.press("3")  # another key counts at once
    expect_mine(page, 2)


def test_a_digit_in_the_open_skip_menu_is_a_reason_wherever_the_focus_is(
    open_as_ann: Open, project: Project
) -> None:
    page = open_as_ann(make_round(project))
    page.locator("#skip summary").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    expect(page.locator("#announcement")).to_have_text("Skipped. Task 1.")
    assert [skip.reason for skip in Skip.objects.all()] == ["I cannot judge this"]
    assert values() == []


def test_the_skip_menu_closes_by_escape_and_by_a_click_elsewhere(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project))
    reason = page.get_by_placeholder("Another reason")
    page.keyboard.press("s")
    reason.focus()
    page.keyboard.press("Escape")
    expect(reason).to_be_hidden()
    page.keyboard.press("s")
    expect(reason).to_be_visible()
    page.locator("#question").click()
    expect(reason).to_be_hidden()
    page.keyboard.press("1")
    expect_mine(page, 1)
    assert Skip.objects.count() == 0


def test_numbers_typed_in_any_order_are_stored_as_typed(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking"))
    shown = held().shown
    for pk, rank in zip(shown, "3124", strict=True):
        _rank_of(page, pk).press_sequentially(rank)
        page.keyboard.press("Tab")
    page.get_by_role("button", name="Save").click()
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(shown[n]): rank for rank, n in enumerate((1, 2, 0, 3), start=1)}}]


@pytest.mark.parametrize(
    ("status", "body"), [(200, "<h1>Welcome to the hotel</h1>"), (400, "bad"), (413, "large"), (429, "slow")]
)
def test_a_foreign_answer_does_not_replace_the_task(
    open_as_ann: Open, project: Project, status: int, body: str
) -> None:
    page = open_as_ann(_rating_of_two(project))
    for key in "42":
        page.keyboard.press(key)
    page.route("**/label/", lambda route: route.fulfill(status=status, body=body, content_type="text/html"))
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_contain_text("What you entered is still here")
    expect(page.locator('[name="score-kind"][value="4"]')).to_be_checked()
    page.unroute("**/label/")
    page.get_by_role("button", name="Try again").click()
    expect_mine(page, 1)
    assert values() == [{"scores": {"kind": 4, "topic": 2}}]


def test_back_online_an_answer_that_did_not_arrive_is_still_asked_for(
    open_as_ann: Open, page: Page, project: Project
) -> None:
    page = open_as_ann(make_round(project))
    page.context.set_offline(True)
    page.keyboard.press("2")
    expect(page.locator("#connection")).to_contain_text("What you entered")
    page.context.set_offline(False)
    expect(page.locator("#connection")).to_contain_text("Your last answer is not saved yet")
    page.get_by_role("button", name="Try again").click()
    expect_mine(page, 1)
    page.problems.clear()  # type: ignore[attr-defined]


def test_who_signs_in_in_another_tab_does_not_answer_for_the_one_who_sat_here(
    open_as_ann: Open, sign_in: SignIn, ann: User, bo: User, project: Project
) -> None:
    page = open_as_ann(make_round(project))
    sign_in(page, bo)
    page.keyboard.press("3")
    expect(page.locator("#connection")).to_contain_text("Somebody else has signed in")
    assert values() == [] and held().rater == ann
    sign_in(page, ann)
    page.get_by_role("button", name="Try again").click()
    expect_mine(page, 1)
    assert Label.objects.get().rater == ann


def test_two_tabs_make_one_label_for_a_task(open_as_ann: Open, project: Project) -> None:
    round = make_round(project)
    page = open_as_ann(round)
    second = page.context.new_page()
    watch(second)
    second.goto(f"/rounds/{round.pk}/judge/")
    page.keyboard.press("t")
    expect_mine(page, 1)
    second.keyboard.press("1")
    expect(second.get_by_role("alert").filter(has_text="that answer stands")).to_be_visible()
    assert values() == [{"outcome": "tie"}]
    second.keyboard.press("b")
    expect_mine(second, 2)


def test_a_closed_round_is_told_without_losing_the_page(open_as_ann: Open, project: Project) -> None:
    round = make_round(project)
    page = open_as_ann(round)
    close_round(round)
    page.keyboard.press("1")
    expect(page.get_by_role("heading", name="This round is closed")).to_be_visible()
    assert values() == []


def test_a_dropped_connection_keeps_the_answer_and_trying_again_saves_it(
    open_as_ann: Open, page: Page, project: Project
) -> None:
    problems = watch(page)
    page = open_as_ann(_rating_of_two(project))
    page.keyboard.press("4")
    page.keyboard.press("2")
    page.route("**/label/", lambda route: route.abort())
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_contain_text("What you entered is still here")
    expect(page.locator('[name="score-kind"][value="4"]')).to_be_checked()
    page.unroute("**/label/")
    page.get_by_role("button", name="Try again").click()
    expect_mine(page, 1)
    expect(page.locator("#connection")).to_be_hidden()
    assert values() == [{"scores": {"kind": 4, "topic": 2}}]
    assert problems
    page.problems.clear()  # type: ignore[attr-defined]


def test_a_session_that_ended_keeps_the_answer(
    open_as_ann: Open, sign_in: SignIn, ann: User, project: Project
) -> None:
    page = open_as_ann(make_round(project))
    page.context.clear_cookies(name="sessionid")
    page.keyboard.press("3")
    expect(page.locator("#connection")).to_contain_text("Sign in again")
    expect(page.locator("#answer")).to_be_visible()
    sign_in(page, ann)
    page.keyboard.press("3")
    expect_mine(page, 1)
    assert len(values()) == 1


def test_the_lease_is_renewed_while_the_page_is_open(
    page: Page, sign_in: SignIn, ann: User, project: Project
) -> None:
    round = make_round(project)
    page.clock.install()
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    almost_over = timezone.now() + timedelta(seconds=20)
    Assignment.objects.filter(state="leased").update(leased_until=almost_over)
    with page.expect_response("**/renew/") as renewed:
        page.clock.fast_forward(61_000)
    assert renewed.value.status == 204
    renewed_until = held().leased_until
    assert renewed_until is not None and renewed_until > almost_over


def test_a_task_that_went_to_somebody_else_is_told_and_the_answer_stays(
    page: Page, sign_in: SignIn, ann: User, bo: User, project: Project
) -> None:
    round = make_round(project, "rating", tasks=1)
    page.clock.install()
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    page.keyboard.press("4")
    Assignment.objects.filter(state="leased").update(leased_until=timezone.now() - timedelta(seconds=1))
    assert next_assignment(round=round, rater=bo) is not None
    page.clock.fast_forward(61_000)
    expect(page.get_by_role("alert").filter(has_text="no longer yours")).to_be_in_viewport()
    expect(page.locator('[name="score-overall"][value="4"]')).to_be_checked()


def test_time_away_from_the_task_does_not_count(
    page: Page, sign_in: SignIn, ann: User, project: Project
) -> None:
    round = make_round(project)
    page.clock.install()
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    page.clock.fast_forward(10_000)
    page.mouse.move(200, 300)
    page.clock.fast_forward(3_600_000)
    page.mouse.move(300, 300)
    page.clock.fast_forward(5_000)
    page.keyboard.press("t")
    expect_mine(page, 1)
    assert 14 < Label.objects.get().seconds < 17


# For everybody


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
    page = open_as_ann(_rating_of_two(project))
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
            _rank_of(page, pk).fill(rank)
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
        assert _too_small(page) == []
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


def _rating_of_two(project: Project) -> Round:
    round = make_round(project, "rating")
    criteria = [
        {"key": "kind", "name": "Kindness", "help": ""},
        {"key": "topic", "name": "On topic", "help": ""},
    ]
    Protocol.objects.update(options={"criteria": criteria, "low": 1, "high": 5})
    return round


def _text(page: Page, pk: int) -> Locator:
    return page.locator(f'.rankable[data-name="{blind_name(pk)}"]')


def _rank_of(page: Page, pk: int) -> Locator:
    return page.locator(f"#rank-{blind_name(pk)}")


def _drag(page: Page, source: Locator, target: Locator) -> None:
    """Press on the handle, move over the upper edge of the target in steps as a hand does, and let go."""
    page.set_viewport_size({"width": 1440, "height": 2000})
    source.locator(".handle").hover()
    page.mouse.down()
    box = target.bounding_box()
    assert box is not None
    for y in (box["y"] + 12, box["y"] + 6, box["y"] + 3):
        page.mouse.move(box["x"] + 60, y, steps=6)
    # A hand lets go when it sees the text where it should be; a busy browser needs a moment to show it.
    above = "(source, target) => Boolean(source.compareDocumentPosition(target) & 4)"
    for step in range(100):
        if source.evaluate(above, target.element_handle()):
            break
        page.mouse.move(box["x"] + 60, box["y"] + 3 + step % 3)
        page.wait_for_timeout(20)
    page.mouse.up()


def _seen(page: Page) -> dict[int, int]:
    """Ranks as they stand on the screen, from top to bottom."""
    rows = page.locator(".rankable").evaluate_all(
        "rows => rows.map(r => [r.dataset.name, r.querySelector('input').value])"
    )
    completions = by_blind_name(held().shown)
    return {completions[name]: int(rank) for name, rank in rows if rank}


def _too_small(page: Page) -> list[str]:
    """Buttons, links and fields under 44 pixels in either direction."""
    return page.evaluate(
        """() => [...document.querySelectorAll('a, button, summary, input:not([type=hidden]), label.score')]
            .filter(e => e.checkVisibility() && !e.closest('.prose') && !e.matches('.skip-link, label input'))
            .map(e => [e.outerHTML.slice(0, 90), e.getBoundingClientRect()])
            .filter(([, box]) => box.width && (box.height < 43.5 || box.width < 43.5))
            .map(([html, box]) => `${html} ${box.width}x${box.height}`)"""
    )
