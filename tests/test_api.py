"""The API: the same activities and permissions as the pages, by token."""

import uuid

import pytest
from django.contrib.auth.models import User
from django.test import Client
from knox.models import AuthToken
from rest_framework.test import APIClient

from labeling import prompts, rounds
from labeling.models import Label, Project, Round
from labeling.models.prompts import Message
from tests import factories


def program_of(user: User) -> APIClient:
    _, token = AuthToken.objects.create(user=user)
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    return client


@pytest.fixture
def round(project: Project) -> Round:
    policy = factories.make_policy(project)
    asked: list[list[Message]] = [[{"role": "user", "content": f"Question {n}?"}] for n in range(40)]
    for prompt in prompts.add_prompts(project=project, conversations=asked):
        texts = ("one", "two")
        prompts.add_completions(
            [
                prompts.NewCompletion(prompt_id=prompt.pk, policy_id=policy.pk, text=t, sampling={})
                for t in texts
            ]
        )
    plan = rounds.RoundPlan(source="existing", train_prompts=5)
    return rounds.create_round(project=project, protocol=factories.make_protocol(project), plan=plan)


def test_a_program_judges_a_task_and_gets_the_next(round: Round, ann: User) -> None:
    program = program_of(ann)
    task = program.post(f"/api/v1/rounds/{round.pk}/next/").json()["task"]
    assert task["prompt"][0]["role"] == "user"
    chosen = task["completions"][0]["id"]
    value = {"outcome": "preferred", "preferred": chosen, "strength": 2}
    key = str(uuid.uuid4())
    first = program.post(
        f"/api/v1/assignments/{task['assignment']}/label/", {"value": value, "key": key}, format="json"
    )
    assert first.status_code == 201
    assert first.json()["next"]["assignment"] != task["assignment"]
    again = program.post(
        f"/api/v1/assignments/{task['assignment']}/label/", {"value": value, "key": key}, format="json"
    )
    assert again.json()["label"] == first.json()["label"]
    assert Label.objects.get().value == value


def test_a_task_says_nothing_about_who_wrote_it(round: Round, ann: User) -> None:
    answer = program_of(ann).post(f"/api/v1/rounds/{round.pk}/next/")
    assert b"policy" not in answer.content and b"starter" not in answer.content


def test_a_label_that_fits_no_protocol_is_refused_with_a_reason(round: Round, ann: User) -> None:
    program = program_of(ann)
    task = program.post(f"/api/v1/rounds/{round.pk}/next/").json()["task"]
    answer = program.post(
        f"/api/v1/assignments/{task['assignment']}/label/", {"value": {"outcome": "maybe"}}, format="json"
    )
    assert answer.status_code == 400
    assert answer.json()["value"]
    assert not Label.objects.exists()


def test_a_closed_round_is_a_conflict(round: Round, ann: User) -> None:
    rounds.close_round(round)
    assert program_of(ann).post(f"/api/v1/rounds/{round.pk}/next/").status_code == 409


def test_strangers_and_raters_find_nothing_of_a_managers(round: Round, ann: User, zed: User) -> None:
    assert program_of(zed).post(f"/api/v1/rounds/{round.pk}/next/").status_code == 404
    for path in ("labels", "datasets", "runs"):
        assert program_of(ann).get(f"/api/v1/projects/stories/{path}/").status_code == 404
    assert APIClient().get("/api/v1/projects/").status_code == 401


def test_a_manager_adds_prompts_and_reads_labels_by_pages(round: Round, ann: User, mia: User) -> None:
    rater, manager = program_of(ann), program_of(mia)
    task = rater.post(f"/api/v1/rounds/{round.pk}/next/").json()["task"]
    rater.post(
        f"/api/v1/assignments/{task['assignment']}/label/", {"value": {"outcome": "tie"}}, format="json"
    )
    page = manager.get("/api/v1/projects/stories/labels/").json()
    assert [row["value"] for row in page["results"]] == [{"outcome": "tie"}]
    new = [{"messages": [{"role": "user", "content": "Something new?"}]}]
    assert manager.post("/api/v1/projects/stories/prompts/", new, format="json").status_code == 201
    bad = [{"messages": [{"role": "assistant", "content": "I come first."}]}]
    assert manager.post("/api/v1/projects/stories/prompts/", bad, format="json").status_code == 400


def test_a_token_is_shown_once_and_can_be_revoked(mia: User, client: Client) -> None:
    client.force_login(mia)
    page = client.post("/tokens/").content.decode()
    token = page.partition('<code class="mono">')[2].partition("</code>")[0]
    program = APIClient()
    program.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    assert program.get("/api/v1/projects/").json() == [{"slug": "stories", "name": "Stories"}]
    assert token not in client.get("/tokens/").content.decode()
    client.post(f"/tokens/{AuthToken.objects.get().token_key}/revoke/")
    assert program.get("/api/v1/projects/").status_code == 401


def test_nobody_revokes_the_token_of_another(mia: User, ann: User, client: Client) -> None:
    AuthToken.objects.create(user=mia)
    client.force_login(ann)
    assert client.post(f"/tokens/{AuthToken.objects.get().token_key}/revoke/").status_code == 404
