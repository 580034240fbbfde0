"""Runs on several datasets: chosen in the form or through the API, refused, laid out, and shown."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.models import PreferenceDataset, Project
from tests import factories
from tests.training.run_pages import manager, put_in
from tests.training.stage import make_dataset, make_run, make_starter
from tests.training.test_run_form import settings_of
from training.mixtures import Mixed
from training.models import Run
from training.recipe_checks import RunRefused
from training.run_folders import write_run_folder

__all__ = ["manager"]  # fixture


@pytest.fixture
def two(project: Project, ann: User) -> tuple[PreferenceDataset, PreferenceDataset]:
    make_starter(project)
    first, second = make_dataset(project, ann), make_dataset(project, ann, "AI & me")
    PreferenceDataset.objects.filter(pk=second.pk).update(source="ai")
    second.refresh_from_db()
    return first, second


Two = tuple[PreferenceDataset, PreferenceDataset]


def test_a_ticked_dataset_is_learnt_from_by_its_weight(manager: Client, project: Project, two: Two) -> None:
    first, second = two
    address = reverse("run_new", args=[project.slug])
    page = manager.get(address, {"method": "dpo", "dataset": str(first.pk)})
    chosen = {f"mix_{second.pk}": "on", f"mix_{second.pk}_weight": "0.5"}
    answer = manager.post(f"{address}?method=dpo", settings_of(page, **chosen))
    run = Run.objects.get()
    assert answer.headers["Location"] == run.get_absolute_url()
    assert run.config["mixture"] == [{"name": "ai-me", "weight": 0.5, "source": "ai"}]
    assert list(run.mixture.values_list("dataset", "name", "weight")) == [(second.pk, "ai-me", 0.5)]
    again = manager.get(address, {"like": run.pk}).context["form"]
    assert (again.initial[f"mix_{second.pk}"], again.initial[f"mix_{second.pk}_weight"]) == (True, 0.5)


def test_what_nobody_ticked_is_not_learnt_from(manager: Client, project: Project, two: Two) -> None:
    address = reverse("run_new", args=[project.slug])
    manager.post(f"{address}?method=dpo", settings_of(manager.get(address, {"method": "dpo"})))
    assert Run.objects.get().config["mixture"] == []


def test_the_dataset_of_the_run_is_not_mixed_with_itself(manager: Client, project: Project, two: Two) -> None:
    address = reverse("run_new", args=[project.slug])
    page = manager.get(address, {"method": "dpo", "dataset": str(two[0].pk)})
    answer = manager.post(f"{address}?method=dpo", settings_of(page, **{f"mix_{two[0].pk}": "on"}))
    assert answer.status_code == 422
    assert "already" in str(answer.context["form"].errors[f"mix_{two[0].pk}"])


def test_a_project_with_one_dataset_is_not_asked_for_more(
    manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    page = manager.get(reverse("run_new", args=[project.slug]))
    assert "further datasets" not in page.content.decode()


def test_a_program_names_further_datasets(manager: Client, project: Project, two: Two) -> None:
    first, second = two
    given = {
        "method": "dpo",
        "dataset": first.pk,
        "policy": project.current_policy_id,
        "mixture": [{"dataset": second.pk, "weight": 2}],
        "config": {"mixture": [{"name": "sneaked-in"}]},
    }
    address = reverse("api_runs", args=[project.slug])
    answer = manager.post(address, json.dumps(given), content_type="application/json")
    assert answer.status_code == 201, answer.content
    assert answer.json()["mixture"] == [{"dataset": second.pk, "name": "ai-me", "weight": 2.0}]
    assert [one["name"] for one in Run.objects.get().config["mixture"]] == ["ai-me"]
    given["mixture"] = [{"dataset": second.pk, "weight": -1}]
    assert manager.post(address, json.dumps(given), content_type="application/json").status_code == 400


def test_a_dataset_of_another_project_or_without_rows_for_the_method_is_refused(
    project: Project, ann: User, two: Two
) -> None:
    other = factories.make_project("Elsewhere")
    strange = make_dataset(other, ann)
    for dataset in (strange, two[0]):
        with pytest.raises(RunRefused, match=r"another project|there already"):
            make_run(project, ann, mixture=[Mixed(dataset, 1.0)])
    PreferenceDataset.objects.filter(pk=two[1].pk).update(manifest={"tables": {"prompts": {"train": 1}}})
    two[1].refresh_from_db()
    with pytest.raises(RunRefused, match="nothing for DPO"):
        make_run(project, ann, mixture=[Mixed(two[1], 1.0)])


def test_the_folder_of_a_run_holds_each_dataset(project: Project, ann: User, two: Two) -> None:
    run = make_run(project, ann, mixture=[Mixed(two[1], 0.5)])
    run_dir = write_run_folder(run)
    for data in (run_dir.data, run_dir.mixed_data("ai-me")):
        assert (data / "pairs.train.jsonl").exists() or (data / "pairs.test.jsonl").exists()
        assert (data / "manifest.json").exists()


def test_the_page_of_a_run_shows_each_dataset_apart(
    manager: Client, project: Project, ann: User, two: Two
) -> None:
    run = make_run(project, ann, mixture=[Mixed(two[1], 0.5)])
    figures: list[dict[str, Any]] = [
        {"name": "main", "weight": 1.0, "train": 30, "test": 4, "figures": {"accuracy": 0.75, "loss": 0.5}},
        {"name": "ai-me", "weight": 0.5, "train": 20, "test": 0, "figures": {}},
    ]
    rows = {"pairs": {"train": {"kept": 30}}, "ai-me/pairs": {"train": {"kept": 20}}}
    Run.objects.filter(pk=run.pk).update(preflight={"ok": True, "rows": rows})
    run.refresh_from_db()
    put_in(run, Run.State.COMPLETE, evaluation={"datasets": figures})
    page = manager.get(run.get_absolute_url()).content.decode()
    assert "AI &amp; me: pairs, train" in page
    table = page[page.index("On each dataset") :]
    assert "75 %" in table
    assert f'href="{two[1].get_absolute_url()}">AI &amp; me</a> <span class="badge">AI</span>' in table
    assert "and 1 more" in page
