"""A manager at work in Chromium: rounds and datasets, on a large screen and on a phone.

`RATCHET_SCREENSHOTS=FOLDER` keeps pictures of every page for eyes to look at.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Policy, PreferenceDataset, Project, Round, Skip
from labeling.rounds import RoundPlan, close_round
from tests import factories
from tests.browser.conftest import SignIn, watch
from tests.labeling import judged

SIZES = {"wide": (1440, 900), "phone": (390, 844)}


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("RATCHET_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def expect_to_fit(page: Page) -> None:
    """Nothing sticks out to the right: the page is not scrolled sideways, on a phone above all."""
    page.wait_for_load_state()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], f"{width} px wide"  # type: ignore[index]


@pytest.fixture
def round(project: Project, ann: User, bo: User) -> Round:
    """Seventy tasks that two raters judged, mostly alike, with sides thrown by lot."""
    policy = factories.make_policy(project)
    old = Policy.objects.create(project=project, name="Owl-1", state=Policy.State.PROMOTED)
    round = judged.make_round(project, state=Round.State.OPEN, wanted=160, overlap=2, old_policy=old)
    said: list[tuple[int | None, int | None]] = [
        (4, 3),
        (2, 2),
        (-1, 1),
        (-3, -4),
        (0, 1),
        (1, -1),
        (None, -2),
    ]
    for number in range(70):
        prompt = judged.make_prompt(
            project, f"Tell me story {number}.", "test" if number % 7 == 0 else "train"
        )
        texts = [
            f"A fox {number}.",
            "As an AI language model I hoot." if number == 3 else f"An owl {number}.",
        ]
        task = judged.make_task(round, prompt, texts, [policy, old], "test" if number % 7 == 0 else "train")
        ids = [item.completion_id for item in task.items.order_by("completion_id")]
        for rater, vote in zip((ann, bo), said[number % 7], strict=True):
            judged.vote(task, rater, vote, shown=ids if (number + rater.pk) % 3 else ids[::-1])
    Skip.objects.create(task=round.tasks.all()[0], rater=ann, reason="The text is broken")
    return round


@pytest.fixture(params=SIZES)
def as_mia(request: pytest.FixtureRequest, new_page: Callable[..., Page], sign_in: SignIn, mia: User) -> Page:
    width, height = SIZES[request.param]
    page = new_page(viewport={"width": width, "height": height})
    page.size_name = request.param  # type: ignore[attr-defined]
    page.problems = watch(page)  # type: ignore[attr-defined]
    sign_in(page, mia)
    return page


def finish(page: Page, name: str) -> None:
    picture(page, f"{name}-{page.size_name}")  # type: ignore[attr-defined]
    expect_to_fit(page)
    assert not page.problems, page.problems  # type: ignore[attr-defined]


def test_the_round_page_fits_and_refreshes_itself_while_labels_come_in(
    as_mia: Page, round: Round, ann: User
) -> None:
    as_mia.goto(f"/rounds/{round.pk}/")
    expect(as_mia.get_by_text("140 of 160 labels")).to_be_visible()
    finish(as_mia, "round")
    task = judged.make_task(
        round,
        judged.make_prompt(round.project, "One more."),
        ["x", "y"],
        [round.old_policy] * 2,  # type: ignore[list-item]
    )
    judged.vote(task, ann, 2)
    expect(as_mia.get_by_text("141 of 160 labels")).to_be_visible(timeout=12_000)


def test_a_round_that_closed_elsewhere_loads_again(as_mia: Page, round: Round) -> None:
    as_mia.goto(f"/rounds/{round.pk}/")
    close_round(round)
    expect(as_mia.get_by_role("link", name="Freeze a dataset")).to_be_visible(timeout=12_000)
    finish(as_mia, "round-closed")


def test_from_closing_the_round_to_a_dataset_on_the_disk(as_mia: Page, round: Round) -> None:
    as_mia.goto(f"/rounds/{round.pk}/")
    as_mia.get_by_text("Close the round…").click()
    as_mia.get_by_role("button", name="Close the round").click()
    as_mia.get_by_role("link", name="Freeze a dataset").click()
    expect(as_mia.get_by_label("Round 1: comparison, 140 labels")).to_be_checked()
    finish(as_mia, "dataset-new")
    as_mia.get_by_role("button", name="Freeze").click()
    expect(as_mia.get_by_role("heading", name="Round 1")).to_be_visible()
    finish(as_mia, "dataset")
    with as_mia.expect_download() as arriving:
        as_mia.get_by_role("link", name="pairs/train.jsonl").first.click()
    dataset = PreferenceDataset.objects.get()
    assert arriving.value.suggested_filename == "round-1-pairs-train.jsonl"
    assert arriving.value.path().stat().st_size == dataset.manifest["files"]["pairs/train.jsonl"]["bytes"]


def test_a_round_that_waits_says_that_no_worker_is_alive(as_mia: Page, round: Round) -> None:
    plan = RoundPlan(source="sample", train_prompts=200, test_prompts=40)
    waiting = judged.make_round(round.project, state=Round.State.WAITING, plan=plan.to_json())
    as_mia.goto(f"/rounds/{waiting.pk}/")
    expect(as_mia.get_by_text("No training worker is alive")).to_be_visible()
    expect(as_mia.get_by_text("The round waits for completions")).to_be_visible()
    finish(as_mia, "round-waiting")


def test_a_round_that_is_all_judged_is_closed_with_one_click(as_mia: Page, round: Round) -> None:
    Round.objects.filter(pk=round.pk).update(wanted=140)
    as_mia.goto(f"/rounds/{round.pk}/")
    as_mia.get_by_role("button", name="Close the round").first.click()
    expect(as_mia.get_by_text("Round 1 is closed.")).to_be_visible()
    finish(as_mia, "round-just-closed")


@pytest.mark.parametrize("kind", ["comparison", "ranking", "rating"])
def test_a_round_is_made_from_the_forms_defaults(as_mia: Page, round: Round, kind: str) -> None:
    as_mia.goto(f"/projects/{round.project.slug}/rounds/new/")
    as_mia.get_by_role("link", name=kind.capitalize(), exact=True).click()
    finish(as_mia, f"round-new-{kind}")
    as_mia.get_by_role("button", name="Create the round").click()
    expect(as_mia.get_by_role("heading", name="Round 2")).to_be_visible()
    made = Round.objects.get(number=2)
    assert (made.protocol.kind, made.state) == (kind, Round.State.OPEN)
    finish(as_mia, f"round-fresh-{kind}")
