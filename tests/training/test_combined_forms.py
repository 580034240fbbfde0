"""Several reward models as one reward, and who compares policies: chosen on the page, kept, refused."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.models import PreferenceDataset, Project
from tests.training.run_pages import manager
from tests.training.test_methods import judged, post, reward_model_on
from training.models import Artifact, Run

__all__ = ["judged", "manager"]  # fixtures
JUDGE = "http://127.0.0.1:8000/v1"


@pytest.fixture
def two(judged: PreferenceDataset) -> list[Artifact]:
    return [reward_model_on(judged, f"/runs/{number}/model") for number in (1, 2)]


def made() -> Run:
    return Run.objects.latest("pk")


def without_single(two: list[Artifact], **changes: Any) -> dict[str, Any]:
    return {f"reward_{two[1].run_id}": None, f"reward_{two[0].run_id}": None, **changes}


def test_an_ensemble_and_a_gated_pair_are_chosen_on_the_page_and_filled_in_again(
    manager: Client, project: Project, two: list[Artifact]
) -> None:
    ids = [str(model.run_id) for model in two]
    chosen = {
        "ensemble_models": ids, "ensemble_combine": "min", "ensemble_weight": 2, "gated_helpfulness": ids[0],
        "gated_safety": ids[1], "gated_threshold": 0.2, "gated_words": "bomb, poison",
    }  # fmt: skip
    post(manager, project, "rloo", **without_single(two, **chosen))
    several, pair = made().config["rewards"]
    assert (several["kind"], several["weight"]) == ("ensemble", 2.0)
    assert several["options"] == {"models": [m.folder for m in two], "combine": "min", "k": 1.0}
    assert pair["options"] == {
        "helpfulness": two[0].folder, "safety": two[1].folder, "threshold": 0.2,
        "safety_words": ["bomb", "poison"],
    }  # fmt: skip
    again = manager.get(reverse("run_new", args=[project.slug]), {"like": made().pk})
    form = again.context["form"]
    assert {name: form[name].value() for name in chosen} == chosen
    page = manager.get(made().get_absolute_url()).content.decode()
    assert f"helpfulness by run {ids[0]}, safety by run {ids[1]}" in page


def test_half_of_a_pair_or_one_model_alone_is_refused_beside_its_field(
    manager: Client, project: Project, two: list[Artifact]
) -> None:
    ids = [str(model.run_id) for model in two]
    answer = post(manager, project, "rloo", **without_single(two, gated_helpfulness=ids[0]))
    assert answer.status_code == 422
    assert "for neither of the two" in str(answer.context["form"].errors["gated_safety"])
    answer = post(manager, project, "rloo", **without_single(two, ensemble_models=ids[:1]))
    assert "from 2 to 8" in str(answer.context["form"].errors["ensemble_models"])


def test_a_policy_is_compared_by_a_judge_and_an_ensemble(
    manager: Client, project: Project, two: list[Artifact], settings: Any
) -> None:
    settings.JUDGES = [JUDGE]
    ids = [str(model.run_id) for model in two]
    chosen = {"eval_ensemble": ids, "eval_judge_location": JUDGE, "eval_judge_rubric": "Kind ones win."}
    post(manager, project, "dpo", **chosen)
    several, judge = made().config["evaluators"]
    assert several["options"]["models"] == [m.folder for m in two]
    assert (judge["location"], judge["options"]) == (JUDGE, {"rubric": "Kind ones win."})
    form = manager.get(reverse("run_new", args=[project.slug]), {"like": made().pk}).context["form"]
    assert {name: form[name].value() for name in chosen} == chosen
    answer = post(manager, project, "dpo", eval_judge_rubric="Kind ones win.")
    assert "Who is to judge" in str(answer.context["form"].errors["eval_judge_location"])


def test_models_of_another_project_neither_reward_nor_compare(
    manager: Client, project: Project, judged: PreferenceDataset, two: list[Artifact], ann: User
) -> None:
    dataset, policy = judged.pk, project.current_policy_id
    stranger = {"name": "x", "kind": "ensemble", "options": {"models": [two[0].folder, "/etc"]}}
    for role in ("rewards", "evaluators"):
        rule = {"name": "length", "kind": "length", "options": {"target": 9}}
        config = {"rewards": [rule], role: [stranger]}
        answer = manager.post(
            f"/api/v1/projects/{project.slug}/runs/",
            {"method": "rloo", "dataset": dataset, "policy": policy, role: [stranger], "config": config},
            content_type="application/json",
        )
        assert answer.status_code == 400
        assert f"{role}.x" in answer.content.decode()
    named = {"kind": "ensemble", "options": {"models": [model.run_id for model in two]}}
    answer = manager.post(
        f"/api/v1/projects/{project.slug}/runs/",
        {"method": "rloo", "dataset": dataset, "policy": policy, "rewards": [named]},
        content_type="application/json",
    )
    assert answer.status_code == 201, answer.content
    assert made().config["rewards"][0]["options"]["models"] == [model.folder for model in two]
