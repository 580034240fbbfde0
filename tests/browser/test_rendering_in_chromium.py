"""Hostile text as prompt, earlier turn, completion and guidelines in a real Chromium: nothing of it runs."""

import time

from django.contrib.auth.models import User
from playwright.sync_api import Page, Request, Route, expect

from labeling.models import Project, Round
from labeling.prompts import NewCompletion, add_completions, add_prompts
from labeling.rounds import NewTask, RoundPlan, fill, open_round
from tests import factories
from tests.browser.conftest import SignIn
from tests.labeling.hostile import HOSTILE


def test_none_of_the_hostile_texts_runs_or_asks_for_anything(
    page: Page, sign_in: SignIn, ann: User, project: Project, server: str
) -> None:
    texts = [text.replace("\0", "") for text in HOSTILE]
    Project.objects.update(guidelines="\n\n".join(texts))
    round = _round_with(project, texts)
    asked: list[str] = []

    def heard(request: Request) -> None:
        path = request.url.removeprefix(server)
        if not path.startswith(("/static/", f"/rounds/{round.pk}/judge/", "/assignments/")):
            asked.append(request.url)

    page.on("request", heard)
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    expect(page.locator("#task")).to_be_visible()
    for task in range(1, len(texts) // 2 + 1):
        page.mouse.move(300, 300 + task)  # for what waits for a pointer
        page.wait_for_timeout(30)  # for what waits for a moment
        assert page.evaluate("window.hacked === undefined")
        assert page.locator("#task").count() == 1 and page.locator("#answer").count() == 1
        assert page.locator(".prose :is(script, img, iframe, form, input, style, [style], [id])").count() == 0
        assert page.locator(".prose").locator("xpath=.//@*[starts-with(name(), 'hx-')]").count() == 0
        page.keyboard.press("tb"[task % 2])  # the same key so soon would be taken for a doubled one
        expect(page.locator(".task-progress b")).to_have_text(str(task))
    assert asked == []


def test_markup_that_slips_past_the_sanitiser_still_cannot_run(
    page: Page, sign_in: SignIn, ann: User, project: Project, server: str
) -> None:
    """The outer walls alone: stored HTML as if the sanitiser had failed, on a slow network."""
    raw = (
        "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
        "<div hx-get='/hacked/' hx-trigger='load'>x</div><div hx-on:load='window.hacked=1'>x</div>"
        "<div data-hx-get='/hacked/' data-hx-trigger='load'>x</div>"
    )
    round = _round_with(project, ["one", "two"], html=raw)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(server)))
    page.route("**/hx-csp.min.js", _late)
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/", wait_until="networkidle")
    assert page.evaluate("window.hacked === undefined")
    assert "/hacked/" not in asked
    assert any("Content Security Policy" in problem for problem in page.problems)  # type: ignore[attr-defined]
    page.problems.clear()  # type: ignore[attr-defined]


def _late(route: Route) -> None:
    time.sleep(0.5)
    route.continue_()


def test_a_huge_text_is_shown_in_a_box_that_scrolls(
    page: Page, sign_in: SignIn, ann: User, project: Project
) -> None:
    round = _round_with(project, ["x" * 190_000, "word " * 30_000])
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.documentElement.scrollHeight < 3000")
    page.keyboard.press("1")
    expect(page.locator("#task")).to_contain_text("Nothing is left for you here")


def test_code_looks_as_it_was_written(page: Page, sign_in: SignIn, ann: User, project: Project) -> None:
    code = "def f(x):\n    if x:\n        return x\n"
    round = _round_with(project, [f"```python\n{code}```", f"```\n{code}```"])
    sign_in(page, ann)
    page.goto(f"/rounds/{round.pk}/judge/")
    for place in (0, 1):
        block = page.locator(".completion pre").nth(place)
        assert block.inner_text().rstrip() == code.rstrip()
    coloured = page.locator(".completion pre .k").first
    plain = page.locator(".completion pre code").first
    color = "element => getComputedStyle(element).color"
    assert coloured.evaluate(color) != plain.evaluate(color)


def _round_with(project: Project, texts: list[str], *, html: str | None = None) -> Round:
    """Comparisons of the texts by twos, each also in an earlier turn and in the prompt."""
    policy = factories.make_policy(project)
    pairs = [texts[n : n + 2] for n in range(0, len(texts) - 1, 2)]
    prompts = add_prompts(
        project=project,
        conversations=[
            [
                {"role": "system", "content": pair[0][:2000]},
                {"role": "user", "content": pair[0][:2000]},
                {"role": "assistant", "content": pair[1][:2000]},
                {"role": "user", "content": f"{n}\n\n{pair[1][:2000]}"},
            ]
            for n, pair in enumerate(pairs)
        ],
    )
    rows = [
        NewCompletion(prompt_id=prompt.pk, policy_id=policy.pk, text=text, html=html)
        for prompt, pair in zip(prompts, pairs, strict=True)
        for text in pair
    ]
    written = add_completions(rows)
    round = Round.objects.create(
        project=project,
        number=1,
        protocol=factories.make_protocol(project),
        plan=RoundPlan(source="existing", train_prompts=len(pairs)).to_json(),
    )
    new = [
        NewTask(
            prompt_id=prompt.pk, purpose="train", completion_ids=[written[2 * n].pk, written[2 * n + 1].pk]
        )
        for n, prompt in enumerate(prompts)
    ]
    fill(round=round, tasks=new)
    open_round(round)
    return round
