"""What a program sends for a run: what no run can be made of is refused by name, never a fault of ours."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from labeling.models import Project
from tests import factories
from tests.training import stage
from training.models import Artifact, Run


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


RULE = {"kind": "length", "options": {"target": 60}}


def make_reward_model(project: Project, folder: str) -> Artifact:
    run = Run.objects.create(project=project, method="reward_model", state=Run.State.COMPLETE)
    return Artifact.objects.create(run=run, kind="reward_model", folder=folder)


def test_a_program_starts_a_run_of_ppo_with_its_rewards(client: Client, project: Project, path: str) -> None:
    project.refresh_from_db()
    model = make_reward_model(project, "/runs/7/model")
    rewards = [{"kind": "model", "reward_model_run": model.run_id, "weight": 2}, {"name": "short", **RULE}]
    answer = send(client, path, project, method="ppo", rewards=rewards, config={"ppo": {"rollout_size": 64}})
    assert answer.status_code == 201, answer.json()
    config = answer.json()["config"]
    assert config["ppo"]["rollout_size"] == 64
    assert [(r["name"], r["kind"], r["weight"], r["location"]) for r in config["rewards"]] == [
        (f"reward model {model.run_id}", "model", 2.0, "/runs/7/model"),
        ("short", "length", 1.0, ""),
    ]


def test_the_reward_model_of_another_project_is_refused(client: Client, project: Project, path: str) -> None:
    project.refresh_from_db()
    foreign = make_reward_model(factories.make_project("Others"), "/runs/9/model")
    by_number = [{"kind": "model", "reward_model_run": foreign.run_id}]
    assert send(client, path, project, method="ppo", rewards=by_number).status_code == 404
    by_folder = {"rewards": [{"name": "theirs", "kind": "model", "location": foreign.folder}]}
    answer = send(client, path, project, method="ppo", config=by_folder)
    assert answer.status_code == 400
    assert "no reward model of this project" in answer.content.decode()
    assert not project.runs.exists()


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"kind": "model"}, "reward_model_run"),
        ({"kind": "model", "location": "/etc"}, "reward_model_run"),
        ({"kind": "judge", "location": "/models/x", "options": {"rubric": "Kind."}}, "RATCHET_JUDGES"),
        ({"kind": "judge", "location": "http://10.0.0.1/", "options": {"rubric": "Kind."}}, "RATCHET_JUDGES"),
        ({"kind": "python", "options": {"function": "os:system"}}, "RATCHET_REWARD_MODULES"),
        ({"kind": "python", "options": {"function": ["os"]}}, ""),
        ({"kind": "spell"}, "kind"),
        ({**RULE, "location": "/etc/passwd"}, "location"),
        ({**RULE, "weight": "heavy"}, "weight"),
        ({**RULE, "name": "\ud800"}, ""),
    ],
)
def test_a_reward_that_a_run_may_not_use_is_refused(
    reward: dict[str, Any], said: str, client: Client, project: Project, path: str
) -> None:
    project.refresh_from_db()
    answer = send(client, path, project, method="grpo", rewards=[reward])
    assert answer.status_code == 400
    assert said in answer.content.decode()
    assert not Run.objects.exists()


def test_an_online_method_without_a_reward_is_refused(client: Client, project: Project, path: str) -> None:
    project.refresh_from_db()
    answer = send(client, path, project, method="rloo")
    assert (answer.status_code, "at least one reward" in answer.content.decode()) == (400, True)


def test_a_dataset_without_rows_for_the_method_is_refused(
    client: Client, project: Project, path: str
) -> None:
    project.refresh_from_db()
    answer = send(client, path, project, method="kto")
    assert answer.status_code == 400
    assert "nothing for KTO to learn from" in answer.content.decode()


def test_sampling_is_no_method_to_train_by(client: Client, project: Project, path: str) -> None:
    project.refresh_from_db()
    assert list(send(client, path, project, method="sample").json()) == ["method"]
