"""Asking a judge what people were asked: its form, its page, and the figure beside the choice of a judge."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from labeling import prompting
from labeling.models import PreferenceDataset, Project
from tests.training.run_pages import manager, put_in
from tests.training.test_methods import judged, post, reward_model_on
from training.models import Run

__all__ = ["judged", "manager"]  # fixtures
JUDGE = "http://127.0.0.1:8000/v1"
FOUND: dict[str, Any] = {
    "n": 90, "agreement": {"rate": 0.71, "low": 0.62, "high": 0.79}, "kappa": 0.42,
    "decided": {"rate": 0.8, "low": 0.7, "high": 0.87}, "position": {"rate": 0.61, "low": 0.55, "high": 0.66},
    "nonsense": {"rate": 0.03, "low": 0.01, "high": 0.09}, "inconsistent": {"rate": 0.18},
    "by_strength": {"1": {"rate": 0.6, "low": 0.5, "high": 0.7}},
}  # fmt: skip


@pytest.fixture
def audit(manager: Client, project: Project, judged: PreferenceDataset, settings: Any) -> Run:
    settings.JUDGES = [JUDGE]
    post(
        manager, project, "judge_audit", judge_location=JUDGE, judge_rubric="Kind <ones> win.", comparisons=50
    )
    return Run.objects.get()


def test_the_form_asks_for_a_judge_alone(
    manager: Client, project: Project, judged: PreferenceDataset, audit: Run
) -> None:
    assert (audit.method, audit.dataset, audit.state) == ("judge_audit", judged, Run.State.CHECKING)
    assert audit.config["judge_audit"] == {"comparisons": 50}
    (judge,) = audit.config["rewards"]
    assert (judge["kind"], judge["location"], judge["options"]) == (
        "judge", JUDGE, {"rubric": "Kind <ones> win."},
    )  # fmt: skip
    form = manager.get(reverse("run_new", args=[project.slug]), {"method": "judge_audit"}).context["form"]
    assert not {"learning_rate", "kind", "policy", "reward_model"} & set(form.fields)
    answer = post(manager, project, "judge_audit")
    assert answer.status_code == 422 and "Choose the judge" in str(answer.context["form"].errors)
    again = manager.get(reverse("run_new", args=[project.slug]), {"like": audit.pk}).context["form"]
    assert again["judge_location"].value() == JUDGE and again["comparisons"].value() == 50


def test_what_it_found_is_on_its_page_and_beside_every_choice_of_a_judge(
    manager: Client, project: Project, judged: PreferenceDataset, audit: Run
) -> None:
    reward_model_on(judged)
    address = reverse("run_new", args=[project.slug])
    assert "ask it first" in manager.get(address, {"method": "dpo"}).content.decode()
    put_in(audit, Run.State.COMPLETE, evaluation={"judge_audit": FOUND})
    page = manager.get(audit.get_absolute_url()).content.decode()
    for words in ("71 %", "62 % to 79 %", "0.42", "61 % of its choices", "Kind &lt;ones&gt; win.", "18 %"):
        assert words in page, words
    assert "Use them together" not in page
    for method in ("dpo", "ppo"):
        page = manager.get(address, {"method": method}).content.decode()
        assert "Judges beside your raters" in page and "62 % to 79 %" in page


def test_an_older_or_odd_evaluation_shows_nothing(manager: Client, audit: Run) -> None:
    put_in(audit, Run.State.COMPLETE, evaluation={"judge_audit": "odd"})
    page = manager.get(audit.get_absolute_url())
    assert page.status_code == 200 and page.context["judge_audit"] is None


def test_a_judge_that_preferred_nothing_is_said_to_be_none(manager: Client, audit: Run) -> None:
    for decided, is_said in ((FOUND["decided"], False), ({"rate": None, "low": 0.0, "high": 1.0}, True)):
        put_in(audit, Run.State.COMPLETE, evaluation={"judge_audit": FOUND | {"decided": decided}})
        page = manager.get(audit.get_absolute_url()).content.decode()
        assert ("It preferred nothing" in page) is is_said


def test_a_judge_that_is_a_policy_is_called_by_its_name(
    manager: Client, project: Project, judged: PreferenceDataset
) -> None:
    policy = project.current_policy
    assert policy is not None
    prompting.make_prompted(policy=policy, system_prompt="Be brief.", examples=[])
    post(
        manager, project, "judge_audit", judge_location=policy.location, judge_rubric="Kind.", comparisons=50
    )
    run = Run.objects.get()
    put_in(run, Run.State.COMPLETE, evaluation={"judge_audit": FOUND})
    assert manager.get(run.get_absolute_url()).context["judge_audit"].judge == policy.name
