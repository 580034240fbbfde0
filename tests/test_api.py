"""The API: the same activities and permissions as the pages, by token."""

import logging
import uuid
from base64 import b64encode
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from knox.models import AuthToken
from rest_framework.test import APIClient

from labeling import datasets, prompts, rounds
from labeling.models import Label, Project, Round
from labeling.models.prompts import Message
from tests import factories
from tests.labeling import judged


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


def test_a_closed_round_is_a_conflict_that_says_so(round: Round, ann: User) -> None:
    program = program_of(ann)
    task = program.post(f"/api/v1/rounds/{round.pk}/next/").json()["task"]
    rounds.close_round(round)
    label = f"/api/v1/assignments/{task['assignment']}/label/"
    for answer in (
        program.post(f"/api/v1/rounds/{round.pk}/next/"),
        program.post(label, {"value": {"outcome": "tie"}}, format="json"),
    ):
        assert (answer.status_code, answer.json()) == (409, {"detail": "The round is closed."})


def test_a_round_without_tasks_says_what_it_waits_for(round: Round, ann: User) -> None:
    Round.objects.update(state=Round.State.WAITING)
    answer = program_of(ann).post(f"/api/v1/rounds/{round.pk}/next/")
    assert (answer.status_code, answer.json()["detail"]) == (409, "This round still waits for completions.")


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


def test_a_token_that_was_revoked_opens_nothing(mia: User, client: Client) -> None:
    program = program_of(mia)
    assert program.get("/api/v1/projects/").json() == [{"slug": "stories", "name": "Stories"}]
    client.force_login(mia)
    client.post(reverse("token_delete", args=[AuthToken.objects.get().token_key]))
    assert program.get("/api/v1/projects/").status_code == 401


JSON = "application/json"
UNANSWERABLE = {
    "many lists": (b"[" * 100_000, "nested too deeply"),
    "many objects": (b'{"a":' * 3_000 + b"1" + b"}" * 3_000, "nested too deeply"),
    "as deep as Python reads": (b'{"a":' * 60 + b"1" + b"}" * 60, "nested too deeply"),
    "a NUL character": (b'{"value": {"a\\u0000": 1}}', "NUL character at position 1"),
    "half a surrogate pair": (b'{"value": ["\\ud800"]}', "half a surrogate pair at position 0"),
    "infinity": (b'{"seconds": 1e999}', "too large"),
    "not a number": (b'{"seconds": NaN}', "NaN"),
    "a number of many digits": (b'{"seconds": ' + b"9" * 5_000 + b"}", "JSON parse error"),
    "no JSON": (b"{", "JSON parse error"),
    "no text": (b"\xff\xfe", "JSON parse error"),
}


@pytest.mark.parametrize(("body", "said"), UNANSWERABLE.values(), ids=UNANSWERABLE)
def test_what_cannot_be_read_or_kept_is_refused_in_json(
    round: Round, ann: User, mia: User, body: bytes, said: str
) -> None:
    program = program_of(ann)
    task = program.post(f"/api/v1/rounds/{round.pk}/next/").json()["task"]
    manager = program_of(mia)
    for answer in (
        program.post(f"/api/v1/assignments/{task['assignment']}/label/", body, content_type=JSON),
        manager.post("/api/v1/projects/stories/prompts/", body, content_type=JSON),
        manager.post("/api/v1/projects/stories/runs/", body, content_type=JSON),
    ):
        assert answer.status_code == 400
        assert said in answer.json()["detail"]
    assert not Label.objects.exists()


@pytest.mark.parametrize("seconds", [10**400, "nan", "-inf", -1, "soon"])
def test_a_time_that_is_no_length_is_refused(round: Round, ann: User, seconds: Any) -> None:
    program = program_of(ann)
    task = program.post(f"/api/v1/rounds/{round.pk}/next/").json()["task"]
    label = {"value": {"outcome": "tie"}, "seconds": seconds}
    answer = program.post(f"/api/v1/assignments/{task['assignment']}/label/", label, format="json")
    assert (answer.status_code, list(answer.json())) == (400, ["seconds"])


@pytest.mark.parametrize("token", ["t\xf6ken", "\xff\xfe", "a" * 5_000, "0123456789abcde;"])
def test_a_token_that_cannot_be_one_is_refused(db: None, token: str) -> None:
    program = APIClient()
    program.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    answer = program.get("/api/v1/projects/")
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid token."})


def test_a_fault_of_the_server_is_answered_in_json_and_logged(
    project: Project, mia: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompts, "add_prompts", fail)
    program = program_of(mia)
    program.raise_request_exception = False
    new = [{"messages": [{"role": "user", "content": "Something new?"}]}]
    with caplog.at_level(logging.ERROR, logger="rlhf_site"):
        answer = program.post("/api/v1/projects/stories/prompts/", new, format="json")
    assert answer.status_code == 500
    assert "No space" not in answer.json()["detail"]
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("position", ["x", "9" * 30, "-1", ""])
def test_a_cursor_that_points_nowhere_is_not_found(project: Project, mia: User, position: str) -> None:
    cursor = b64encode(f"p={position}".encode()).decode()
    answer = program_of(mia).get("/api/v1/projects/stories/labels/", {"cursor": cursor})
    assert (answer.status_code, list(answer.json())) == (404, ["detail"])


def test_a_file_that_is_gone_from_the_disk_is_not_found(project: Project, ann: User, mia: User) -> None:
    closed = judged.compared_round(project, [ann], [[4, 2], [-1, -3]])
    dataset = datasets.freeze(project=project, rounds=[closed], rule="majority", name="first")
    address = f"/api/v1/datasets/{dataset.pk}/files/pairs/train.jsonl"
    assert program_of(mia).get(address).status_code == 200
    (datasets.folder_of(dataset) / "pairs" / "train.jsonl").unlink()
    answer = program_of(mia).get(address)
    assert answer.status_code == 404
    assert "pairs/train.jsonl is listed" in answer.json()["detail"]
