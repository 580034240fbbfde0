"""Simulated raters: people of the small world who judge through the real pages, over HTTP.

They see what a browser shows, nothing else, and prefer by the hidden preference with noise.
"""

import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2
from django.contrib.auth.models import User
from django.urls import reverse

from labeling.models import Membership, Project, Round
from rlhf_site.demo.task_page import TaskPage, read_task
from training.rlhf.starter import hidden_preference

TIMEOUT = 60.0


class JudgingFailed(Exception):
    """A page answered with an error; the message names the page and what it said."""


@dataclass(frozen=True)
class SimulatedRater:
    user: User
    password: str
    seed: str
    noise: float


def hire(project: Project, count: int, *, seed: int, noise: float) -> list[SimulatedRater]:
    """`count` simulated raters of the project, with new passwords that only this process knows."""
    raters = []
    for number in range(1, count + 1):
        user, _ = User.objects.get_or_create(username=f"simulated-{number}")
        password = secrets.token_urlsafe(16)
        user.set_password(password)
        user.save(update_fields=["password"])
        Membership.objects.get_or_create(project=project, user=user, defaults={"role": Membership.Role.RATER})
        raters.append(SimulatedRater(user=user, password=password, seed=f"{seed}-{number}", noise=noise))
    return raters


def judge(address: str, round: Round, raters: list[SimulatedRater], *, limit: int | None = None) -> int:
    """Let all raters judge at once until nothing is left for them, or each gave `limit` labels.

    Returns how many labels the server acknowledged. Raises JudgingFailed.
    """
    page = reverse("judge", args=[round.pk])
    with ThreadPoolExecutor(max_workers=len(raters)) as pool:
        working = [pool.submit(_judge_all, address, page, rater, limit) for rater in raters]
        try:
            return sum(done.result() for done in working)
        except httpx2.HTTPError as error:
            raise JudgingFailed(f"{address}: {error}") from error


def _judge_all(address: str, page: str, rater: SimulatedRater, limit: int | None) -> int:
    rng = random.Random(f"{rater.seed} {page}")
    with httpx2.Client(base_url=address, timeout=TIMEOUT, follow_redirects=True) as browser:
        _sign_in(browser, rater)
        task = read_task(_checked(browser.get(page)))
        labels = 0
        while task.kind != "nothing" and (limit is None or labels < limit):
            filled = {**task.fields, **answer(task, rng, rater.noise), "seconds": "1"}
            shown = _checked(browser.post(task.action, data=filled, headers={"HX-Request": "true"}))
            labels += 1
            task = read_task(shown)
            if not task.kind:
                raise JudgingFailed(f"{task.action or page} answered without a task: {shown[:500]}")
        return labels


def _sign_in(browser: httpx2.Client, rater: SimulatedRater) -> None:
    form = _checked(browser.get(reverse("login")))
    token = form.partition('name="csrfmiddlewaretoken" value="')[2].partition('"')[0]
    filled = {"username": rater.user.username, "password": rater.password, "csrfmiddlewaretoken": token}
    _checked(browser.post(reverse("login"), data=filled))
    if "sessionid" not in browser.cookies:
        raise JudgingFailed(f"{rater.user.username} could not sign in")


def _checked(response: httpx2.Response) -> str:
    if response.status_code != 200:
        raise JudgingFailed(f"{response.url} answered {response.status_code}: {response.text[:500]}")
    return response.text


def answer(task: TaskPage, rng: random.Random, noise: float) -> dict[str, str]:
    """The fields of the answer form, as this rater fills them in."""
    match task.kind:
        case "comparison":
            left, right = task.completions
            opinion = hidden_preference.prefer(task.prompt, left, right, rng=rng, noise=noise)
            return {"choice": _choice(task.choices, opinion)}
        case "ranking":
            ranks = hidden_preference.rank(task.prompt, task.completions, rng=rng, noise=noise)
            return {name: str(rank) for name, rank in zip(task.inputs, ranks, strict=True)}
        case "rating":
            [text] = task.completions
            return {
                name: str(hidden_preference.stars(task.prompt, text, rng=rng, noise=noise))
                for name in task.inputs
            }
    raise JudgingFailed(f"a page of an unknown kind: {task.kind!r}")


def _choice(choices: list[str], opinion: hidden_preference.Opinion) -> str:
    """The button for an opinion. The scale runs from the left's strongest step to the right's."""
    steps = [value for value in choices if ":" in value]
    most = len(steps) // 2
    if opinion.outcome == "tie" and "tie" in choices:
        return "tie"
    strength = min(most, max(1, opinion.strength))
    return steps[most - strength] if opinion.outcome != "b" else steps[most - 1 + strength]
