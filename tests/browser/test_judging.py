"""A rater at work in Chromium: each kind by mouse and by keys stores exactly the label that was meant."""

import pytest
from playwright.sync_api import expect

from labeling.blinding import blind_name
from labeling.models import Project, Protocol, Skip
from tests.browser.judging import Open, expect_mine, held, rating_of_two, values
from tests.browser.stories import make_round

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
    page = open_as_ann(rating_of_two(project))
    for key in ("4", "2", "Enter"):
        page.keyboard.press(key)
    expect_mine(page, 1)
    assert values() == [{"scores": {"kind": 4, "topic": 2}}]


def test_arrows_go_back_to_a_score(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(rating_of_two(project))
    for key in ("4", "2", "ArrowUp", "5", "Enter"):
        page.keyboard.press(key)
    expect_mine(page, 1)
    assert values() == [{"scores": {"kind": 5, "topic": 2}}]


def test_scores_by_mouse(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(rating_of_two(project))
    page.get_by_role("group", name="Kindness").get_by_role("radio", name="1").check()
    page.get_by_role("group", name="On topic").get_by_role("radio", name="5").check()
    page.get_by_role("button", name="Save").click()
    expect_mine(page, 1)
    assert values() == [{"scores": {"kind": 1, "topic": 5}}]


def test_a_missing_score_is_asked_for(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(rating_of_two(project))
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="On topic").get_by_role("radio").first).to_be_focused()
    expect(page.locator('[name="score-kind"][value="3"]')).to_be_checked()
    assert values() == []


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
