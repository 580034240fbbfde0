"""The criteria of a reward model: chosen on the page with their weights, and shown one by one."""

from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.models import PreferenceDataset, Project
from tests.training.run_pages import manager, put_in
from tests.training.test_methods import judged, post, reward_model_on
from training.models import Run
from training.views.curves import curves_of

__all__ = ["judged", "manager"]  # fixtures


def test_criteria_are_chosen_with_their_weights_and_kept(
    manager: Client, project: Project, judged: PreferenceDataset, ann: User
) -> None:
    post(manager, project, "reward_model", criteria="helpful 2, very brief: -0.5, honest")
    run = Run.objects.get()
    learning = run.config["reward_learning"]
    assert learning["criteria"] == {"helpful": 2.0, "very brief": -0.5, "honest": 1.0}
    assert learning["one_head_each"] is True
    again = manager.get(reverse("run_new", args=[project.slug]), {"like": run.pk}).content.decode()
    assert 'value="helpful 2, very brief -0.5, honest 1"' in again
    assert "helpful 2, very brief -0.5, honest 1" in manager.get(run.get_absolute_url()).content.decode()
    answer = post(manager, project, "reward_model", criteria="helpful 0")
    assert answer.status_code == 422
    assert "not 0" in str(answer.context["form"].errors["criteria"])
    post(manager, project, "reward_model")
    assert Run.objects.latest("pk").config["reward_learning"]["criteria"] == {}


def test_each_criterion_has_its_figures(manager: Client, project: Project, judged: PreferenceDataset) -> None:
    post(manager, project, "reward_model")
    given = {"share": -0.5, "n": 40, "spearman": 0.61, "order": {"accuracy": 0.8}, "acceptable": {"f1": 0.75}}
    found = {"accuracy": 0.7, "criteria": {"brief <b>": given, "new": {"share": 1.0, "n": 0}}}
    run = put_in(Run.objects.get(), Run.State.COMPLETE, evaluation=found)
    page = manager.get(run.get_absolute_url()).content.decode()
    for words in ("Each criterion by itself", "brief &lt;b&gt;", "0.61", "80 %", "75 %"):
        assert words in page, words


def test_the_criteria_of_a_reward_model_are_lines_of_the_run_that_it_rewards(
    manager: Client, project: Project, judged: PreferenceDataset
) -> None:
    model = reward_model_on(judged)
    model.run.config = {"reward_learning": {"criteria": {"kind": 1.0, "brief": -0.5}}}
    model.run.save()
    post(manager, project, "rloo")
    titles = {curve["title"]: curve["lines"] for curve in curves_of(Run.objects.latest("pk"))}
    name = f"reward model {model.run_id}"
    assert list(titles["Rewards one by one"]) == [name, f"{name} kind", f"{name} brief"]
