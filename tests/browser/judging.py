"""What the tests of a rater at work share: what is held, what is stored, what stands on the screen."""

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

from labeling.blinding import blind_name, by_blind_name
from labeling.models import Assignment, Label, Project, Prompt, Protocol, Round
from tests.browser.stories import make_round

NewPage = Callable[..., Page]
Open = Callable[[Round], Page]


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


def rating_of_two(project: Project) -> Round:
    round = make_round(project, "rating")
    criteria = [
        {"key": "kind", "name": "Kindness", "help": ""},
        {"key": "topic", "name": "On topic", "help": ""},
    ]
    Protocol.objects.update(options={"criteria": criteria, "low": 1, "high": 5})
    return round


def text_of(page: Page, pk: int) -> Locator:
    return page.locator(f'.rankable[data-name="{blind_name(pk)}"]')


def rank_of(page: Page, pk: int) -> Locator:
    return page.locator(f"#rank-{blind_name(pk)}")


def drag(page: Page, source: Locator, target: Locator) -> None:
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


def seen_order(page: Page) -> dict[int, int]:
    """Ranks as they stand on the screen, from top to bottom."""
    rows = page.locator(".rankable").evaluate_all(
        "rows => rows.map(r => [r.dataset.name, r.querySelector('input').value])"
    )
    completions = by_blind_name(held().shown)
    return {completions[name]: int(rank) for name, rank in rows if rank}


def too_small(page: Page) -> list[str]:
    """Buttons, links and fields under 44 pixels in either direction."""
    return page.evaluate(
        """() => [...document.querySelectorAll('a, button, summary, input:not([type=hidden]), label.score')]
            .filter(e => e.checkVisibility() && !e.closest('.prose') && !e.matches('.skip-link, label input'))
            .map(e => [e.outerHTML.slice(0, 90), e.getBoundingClientRect()])
            .filter(([, box]) => box.width && (box.height < 43.5 || box.width < 43.5))
            .map(([html, box]) => `${html} ${box.width}x${box.height}`)"""
    )
