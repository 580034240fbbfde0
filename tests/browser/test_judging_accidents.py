"""What goes wrong while a rater judges in Chromium: no answer is lost, and none is made that nobody meant."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Page, expect

from labeling.assignment import next_assignment
from labeling.models import Assignment, Label, Project, Skip
from labeling.rounds import close_round
from tests.browser.conftest import SignIn, watch
from tests.browser.judging import Open, expect_mine, held, rank_of, rating_of_two, values
from tests.browser.stories import make_round


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
        rank_of(page, pk).press_sequentially(rank)
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
    page = open_as_ann(rating_of_two(project))
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
    page = open_as_ann(rating_of_two(project))
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
