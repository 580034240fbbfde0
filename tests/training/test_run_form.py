"""The form for a new run: what it offers, fills in, refuses, and where it says so."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.models import PreferenceDataset, Project
from tests import factories
from tests.training.run_pages import manager, put_in, run
from tests.training.stage import make_dataset, make_run, make_starter
from training.models import Artifact, Run
from training.rlhf.config import Training

State = Run.State
__all__ = ["manager", "run"]  # fixtures


def settings_of(page: Any, **changes: Any) -> dict[str, Any]:
    """What a browser would post: the form as it came, with some changes."""
    form = page.context["form"]
    values = {name: form[name].value() for name in form.fields}
    posted = {name: getattr(v, "pk", v) for name, v in {**values, **changes}.items()}
    return {name: value for name, value in posted.items() if value not in (None, "") and value is not False}


def test_the_form_comes_with_settings_that_work(manager: Client, project: Project, ann: User) -> None:
    make_starter(project)
    dataset = make_dataset(project, ann)
    address = reverse("run_new", args=[project.slug])
    page = manager.get(address, {"method": "dpo"})
    answer = manager.post(f"{address}?method=dpo", settings_of(page, seed=7, beta=0.3))
    run = Run.objects.get()
    assert answer.headers["Location"] == run.get_absolute_url()
    assert (run.method, run.state, run.dataset) == ("dpo", State.CHECKING, dataset)
    assert run.config["seed"] == 7
    assert run.config["dpo"]["beta"] == 0.3
    assert run.policy == project.current_policy
    assert run.created_by and run.created_by.username == "mia"
    assert run.then_next_round and not run.start_when_ready


@pytest.mark.parametrize(("chosen", "kept"), [("True", True), ("False", False)])
def test_bf16_is_as_chosen(chosen: str, kept: bool, manager: Client, project: Project, ann: User) -> None:
    make_starter(project)
    make_dataset(project, ann)
    address = reverse("run_new", args=[project.slug])
    manager.post(address, settings_of(manager.get(address), bf16=chosen))
    assert Run.objects.get().config["training"]["bf16"] is kept


def test_bf16_is_left_to_the_recipe_when_nobody_chose(manager: Client, project: Project, ann: User) -> None:
    make_starter(project)
    make_dataset(project, ann)
    address = reverse("run_new", args=[project.slug])
    manager.post(address, settings_of(manager.get(address), bf16=""))
    assert Run.objects.get().config["training"]["bf16"] is Training().bf16


def test_the_method_decides_which_settings_are_asked_for(
    manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    address = reverse("run_new", args=[project.slug])
    assert 'name="beta"' in manager.get(address, {"method": "dpo"}).content.decode()
    assert 'name="beta"' not in manager.get(address, {"method": "reward_model"}).content.decode()


def test_a_link_can_choose_the_dataset(manager: Client, project: Project, ann: User) -> None:
    make_starter(project)
    older = make_dataset(project, ann, "older")
    make_dataset(project, ann, "newer")
    page = manager.get(reverse("run_new", args=[project.slug]), {"dataset": older.pk})
    assert f'<option value="{older.pk}" selected>older' in page.content.decode()


def rated_dataset(project: Project, name: str = "rated") -> PreferenceDataset:
    """A dataset of ratings alone."""
    return PreferenceDataset.objects.create(
        project=project,
        name=name,
        rule="each_label",
        folder=name,
        digest=name,
        manifest={"tables": {"ratings": {"train": 9, "test": 1}, "prompts": {"train": 9, "test": 1}}},
    )


def reward_model_on(dataset: PreferenceDataset) -> Artifact:
    run = Run.objects.create(
        project=dataset.project, method="reward_model", state=State.COMPLETE, dataset=dataset
    )
    return Artifact.objects.create(run=run, kind="reward_model", folder="/x")


def test_a_dataset_of_ratings_trains_a_reward_model_but_no_dpo(
    manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    dataset = make_dataset(project, ann)
    rated = rated_dataset(project)
    address = reverse("run_new", args=[project.slug])
    page = manager.get(f"{address}?dataset={rated.pk}&method=reward_model")
    assert list(page.context["form"].fields["dataset"].queryset) == [rated, dataset]
    page = manager.get(f"{address}?dataset={rated.pk}&method=dpo")
    assert list(page.context["form"].fields["dataset"].queryset) == [dataset]
    assert "has nothing for DPO to learn from" in page.content.decode()


def test_a_method_without_rows_leads_to_the_round_that_brings_them(
    manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    rated_dataset(project)
    address = reverse("run_new", args=[project.slug])
    page = manager.get(address, {"method": "dpo"}).content.decode()
    assert f'href="{reverse("round_new", args=[project.slug])}?kind=comparison"' in page
    assert 'name="learning_rate"' not in page
    assert 'name="learning_rate"' in manager.get(address).content.decode()  # ratings train a reward model


def test_a_dataset_trains_a_reward_model_first_and_a_policy_with_that_model_then(
    manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    older = make_dataset(project, ann, "older")
    reward_model_on(older)
    newer = make_dataset(project, ann, "newer")
    address = f"{reverse('run_new', args=[project.slug])}?dataset={newer.pk}"
    assert manager.get(address).context["method"] == "reward_model"
    its_own = reward_model_on(newer)
    reward_model_on(older)
    form = manager.get(address).context["form"]
    assert form.method == "dpo" and form.initial["dataset"] == newer
    assert form.initial["reward_model"] == its_own and form.stranger() is None


def test_a_reward_model_that_learnt_from_another_dataset_is_pointed_out(
    manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    model = reward_model_on(make_dataset(project, ann, "older"))
    newer = make_dataset(project, ann, "newer")
    said = "learnt from older, not from newer"
    address = f"{reverse('run_new', args=[project.slug])}?method=dpo&dataset={newer.pk}"
    assert said in manager.get(address).content.decode()
    run = make_run(project, ann, reward_model=model)
    Run.objects.filter(pk=run.pk).update(dataset=newer)
    assert said in manager.get(run.get_absolute_url()).content.decode()
    Run.objects.filter(pk=run.pk).update(dataset=model.run.dataset)
    assert "not from" not in manager.get(run.get_absolute_url()).content.decode()


def test_another_method_keeps_the_dataset_of_the_link(manager: Client, project: Project, ann: User) -> None:
    make_starter(project)
    older = make_dataset(project, ann, "older")
    make_dataset(project, ann, "newer")
    page = manager.get(reverse("run_new", args=[project.slug]), {"dataset": older.pk}).content.decode()
    assert f'href="?method=dpo&amp;dataset={older.pk}"' in page


def test_a_refused_run_is_asked_for_again_with_its_settings_and_room_for_its_longest_row(
    manager: Client, run: Run, project: Project
) -> None:
    config = run.config | {
        "seed": 5,
        "dpo": run.config["dpo"] | {"beta": 0.25},
        "training": run.config["training"] | {"max_length": 64},
    }
    rows = {
        "pairs": {"train": {"kept": 1, "dropped": 9, "longest": 700}, "test": {"dropped": 0, "longest": 9}}
    }
    put_in(run, State.REFUSED, config=config, preflight={"ok": False, "rows": rows})
    page = manager.get(run.get_absolute_url()).content.decode()
    link = f"{reverse('run_new', args=[project.slug])}?like={run.pk}"
    assert link in page
    manager.post(link, settings_of(manager.get(link)))
    again = Run.objects.latest("pk")
    assert (again.config["seed"], again.config["dpo"]["beta"]) == (5, 0.25)
    assert again.config["training"]["max_length"] == 700
    assert (again.dataset, again.policy, again.then_next_round) == (run.dataset, run.policy, False)


def test_the_settings_of_another_projects_run_are_not_shown(manager: Client, run: Run, ann: User) -> None:
    other = factories.make_project("Others")
    foreign = make_run(other, ann, config={"seed": 424242})
    address = reverse("run_new", args=[run.project.slug])
    assert "424242" not in manager.get(f"{address}?like={foreign.pk}").content.decode()


@pytest.mark.parametrize("query", ["method=ppo", "dataset=x&policy=-1", f"dataset={10**18}", "method="])
def test_an_odd_link_to_the_form_shows_the_plain_form(
    query: str, manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    assert manager.get(f"{reverse('run_new', args=[project.slug])}?{query}").status_code == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 5}, "Learning rate is 5.0: above 0, below 1"),
        ({"batch_size": ""}, "This field is required."),
        ({"dataset": 999}, "Select a valid choice"),
        ({"epochs": "many"}, "Enter a number."),
    ],
)
def test_a_setting_that_cannot_be_is_refused_where_it_stands(
    changes: dict[str, Any], said: str, manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    address = reverse("run_new", args=[project.slug])
    answer = manager.post(address, settings_of(manager.get(address), **changes))
    assert answer.status_code == 422
    assert said in answer.content.decode()
    assert not Run.objects.exists()


@pytest.mark.parametrize(
    ("changes", "marked", "said"),
    [
        ({"epochs": 0}, ["epochs"], "Epochs is 0.0: above 0, at most 1000"),
        ({"lora_rank": 0}, ["lora_rank"], "LoRA rank is 0: from 1 to 1024"),
        ({"max_new_tokens": 0}, ["max_new_tokens"], "Longest completion in evaluation: from 1 to 100,000"),
        (
            {"save_every": 0},
            ["log_every", "save_every"],
            "Steps between reports and Steps between checkpoints: at least 1 step",
        ),
    ],
)
def test_what_the_recipe_refuses_stands_beside_its_field_in_the_words_of_the_page(
    changes: dict[str, Any], marked: list[str], said: str, manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    address = f"{reverse('run_new', args=[project.slug])}?method=dpo"
    answer = manager.post(address, settings_of(manager.get(address), **changes))
    form, page = answer.context["form"], answer.content.decode()
    assert form.errors == {name: [said] for name in marked}
    assert page.count('aria-invalid="true"') == len(marked)
    for name in marked:
        assert f'<a href="#id_{name}">{form[name].label}</a>' in page
    assert ("<details open>" in page) == any(field.name in marked for field in form.folded())


def test_completions_that_do_not_divide_a_step_are_refused_beside_their_number(
    manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    address = reverse("run_new", args=[project.slug])
    page = manager.get(address, {"method": "rloo"})
    posted = settings_of(page, completions_per_prompt=7, rule_1_kind="length", rule_1_text="40 to 80")
    answer = manager.post(f"{address}?method=rloo", posted)
    assert answer.status_code == 422
    assert "does not divide the" in str(answer.context["form"].errors["completions_per_prompt"])
    assert not Run.objects.exists()


def test_a_dataset_of_another_project_cannot_be_chosen(manager: Client, project: Project, ann: User) -> None:
    make_starter(project)
    make_dataset(project, ann)
    other = factories.make_project("Others")
    foreign = make_dataset(other, ann)
    address = reverse("run_new", args=[project.slug])
    answer = manager.post(address, settings_of(manager.get(address), dataset=foreign))
    assert answer.status_code == 422
    assert "others" not in answer.content.decode().lower()


def test_without_a_dataset_the_page_says_what_is_missing(manager: Client, project: Project) -> None:
    page = manager.get(reverse("run_new", args=[project.slug])).content.decode()
    assert "there is none yet" in page and 'name="learning_rate"' not in page


@pytest.mark.parametrize("name", ["ann", "zed"])
def test_only_managers_may_ask_for_a_run(
    name: str, client: Client, project: Project, request: pytest.FixtureRequest
) -> None:
    client.force_login(request.getfixturevalue(name))
    address = reverse("run_new", args=[project.slug])
    assert client.get(address).status_code == client.post(address).status_code == 404


def test_a_new_run_of_no_project_is_not_found(manager: Client) -> None:
    assert manager.get(reverse("run_new", args=["nowhere"])).status_code == 404


def test_a_new_run_is_not_deleted(manager: Client, project: Project) -> None:
    assert manager.delete(reverse("run_new", args=[project.slug])).status_code == 405
