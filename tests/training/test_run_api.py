"""What a program sends for a run: what no run can be made of is refused by name, never a fault of ours."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from labeling.models import Project
from tests.training import stage
from training.models import Run


@pytest.fixture
def path(project: Project, ann: User, mia: User, client: Client) -> str:
    stage.make_starter(project)
    stage.make_dataset(project, ann)
    client.force_login(mia)
    return f"/api/v1/projects/{project.slug}/runs/"


def send(client: Client, path: str, project: Project, **changed: Any) -> Any:
    dataset = project.datasets.get()
    asked = {"method": "dpo", "dataset": dataset.pk, "policy": project.current_policy_id, **changed}
    return client.post(path, json.dumps(asked), content_type="application/json")


@pytest.mark.parametrize("name", ["dataset", "policy", "reward_model_run"])
def test_a_number_that_no_row_can_have_is_refused(
    client: Client, project: Project, path: str, name: str
) -> None:
    project.refresh_from_db()
    answer = send(client, path, project, **{name: 10**23})
    assert (answer.status_code, list(answer.json())) == (400, [name])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"policies": {"a": "\ud800"}}, "surrogate"),
        ({"training": {"save_every": 10**30}}, "save_every"),
        ({"tuning": {"lora_alpha": 10**400}}, "lora_alpha"),
    ],
)
def test_a_recipe_that_could_not_be_written_down_is_refused(
    client: Client, project: Project, path: str, config: dict[str, Any], said: str
) -> None:
    project.refresh_from_db()
    answer = send(client, path, project, config=config)
    assert answer.status_code == 400
    assert said in answer.content.decode(), answer.json()
    assert not Run.objects.exists()
