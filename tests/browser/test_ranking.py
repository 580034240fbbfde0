"""A rater orders texts in Chromium, by drag, keys and numbers: what is seen is what is stored."""

from playwright.sync_api import expect

from labeling.models import Project
from tests.browser.judging import Open, drag, expect_mine, held, rank_of, seen_order, text_of, values
from tests.browser.stories import make_round


def test_what_is_seen_after_dragging_is_what_is_stored(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking"))
    for place in (3, 1, 2):  # each is dragged from below onto the line, so it comes to stand last above it
        drag(page, text_of(page, held().shown[place]), page.locator(".unranked-line"))
    seen = seen_order(page)
    page.get_by_role("button", name="Save").click()
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(pk): rank for pk, rank in seen.items()}}]
    assert sorted(seen.values()) == [1, 2, 3]


def test_dragging_within_the_ranking_swaps_the_numbers(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, c = held().shown
    for pk, rank in ((a, "1"), (b, "2"), (c, "3")):
        rank_of(page, pk).fill(rank)
        rank_of(page, pk).blur()
    drag(page, text_of(page, c), text_of(page, a))
    seen = seen_order(page)
    assert seen[c] < seen[a] < seen[b] or seen[a] < seen[c] < seen[b]
    page.keyboard.press("Enter")
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(pk): rank for pk, rank in seen.items()}}]


def test_ranking_by_keys_with_a_tie_and_one_left_out(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking"))
    a, b, c, d = held().shown
    text_of(page, c).focus()
    page.keyboard.press("1")  # c
    text_of(page, a).focus()
    page.keyboard.press("1")  # a, c
    text_of(page, d).focus()
    page.keyboard.press("3")  # a, c, d
    page.keyboard.press("t")  # a, c = d
    assert seen_order(page) == {a: 1, c: 2, d: 2}
    page.keyboard.press("Shift+ArrowUp")  # a, d, c
    assert seen_order(page) == {a: 1, d: 2, c: 3}
    page.keyboard.press("Enter")
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(a): 1, str(d): 2, str(c): 3}}]
    assert b not in seen_order(page)


def test_a_tie_is_stored(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, c = held().shown
    for pk, rank in ((b, "1"), (a, "2"), (c, "2")):
        rank_of(page, pk).fill(rank)
        rank_of(page, pk).blur()
    expect(text_of(page, c).get_by_role("button", name="Tie")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Save").click()
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(b): 1, str(a): 2, str(c): 2}}]


def test_all_can_be_ranked_as_they_stand(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, c = held().shown
    text_of(page, c).get_by_role("button", name="up").click()
    page.get_by_role("button", name="Rank all").click()
    order = seen_order(page)
    assert sorted(order.values()) == [1, 2, 3] and set(order) == {a, b, c}
    page.keyboard.press("Enter")
    expect_mine(page, 1)
    assert values() == [{"ranks": {str(pk): rank for pk, rank in order.items()}}]


def test_moving_by_buttons(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking", each=3))
    a, b, _ = held().shown
    text_of(page, a).get_by_role("button", name="up").click()
    text_of(page, b).get_by_role("button", name="up").click()
    text_of(page, a).get_by_role("button", name="down").click()
    assert seen_order(page) == {b: 1, a: 2}


def test_taking_one_out_of_a_tie_of_three_leaves_a_tie_of_two(open_as_ann: Open, project: Project) -> None:
    page = open_as_ann(make_round(project, "ranking"))
    a, b, c, d = held().shown
    for pk, rank in ((a, "1"), (b, "1"), (c, "1"), (d, "2")):
        rank_of(page, pk).fill(rank)
        rank_of(page, pk).blur()
    assert seen_order(page) == {a: 1, b: 1, c: 1, d: 2}
    text_of(page, a).focus()
    page.keyboard.press("0")
    assert seen_order(page) == {b: 1, c: 1, d: 2}
