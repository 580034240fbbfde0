"""The policy page: what it shows of a policy, who may see it, and the override with a reason."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import prompting
from labeling.models import Policy, Project
from tests import factories
from tests.training.stage import make_run, make_starter
from training.models import Artifact, GateDecision, Run

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)>"


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def candidate(project: Project, ann: User) -> Policy:
    """A policy that a finished DPO run made from the starter."""
    run = make_run(project, ann)
    Run.objects.filter(pk=run.pk).update(
        state=Run.State.COMPLETE, evaluation={"prompts": 2, "kl": 7.84, "win_rate_reward_model": 0.88}
    )
    policy = factories.make_policy(project, "dpo-1", Policy.State.CANDIDATE)
    policy.parent = project.current_policy
    policy.location = "org/dpo-1"
    policy.save()
    lineage = {"versions": {"trl": "1.16.0"}}
    Artifact.objects.create(run=run, kind="policy", folder="/runs/1", policy=policy, lineage=lineage)
    return policy


def write_completions(policy: Policy, *lines: dict[str, Any]) -> None:
    folder = policy.artifact.run.folder
    (folder / "data").mkdir(parents=True)
    prompts = [{"prompt": [{"role": "user", "content": f"Tell me about {thing}."}]} for thing in ("a", "b")]
    (folder / "data" / "prompts.test.jsonl").write_text("\n".join(map(json.dumps, prompts)) + "\n")
    (folder / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def wrote(request: int, policy: str, text: str, finish: str = "eos") -> dict[str, Any]:
    return {"request": request, "policy": policy, "text": text, "finish": finish, "tokens": 5}


def page_of(manager: Client, policy: Policy) -> str:
    answer = manager.get(policy.get_absolute_url())
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_policy_tells_where_it_comes_from_and_how_it_does(manager: Client, candidate: Policy) -> None:
    page = page_of(manager, candidate)
    run = candidate.artifact.run
    assert run.dataset is not None
    for said in (
        "dpo-1",
        "Candidate",
        "starter",
        f"run {run.pk}",
        run.dataset.digest,
        "trl 1.16.0",
        "7.84",
        "88 %",
    ):
        assert said in page, said


def test_completions_stand_beside_those_of_the_parent(manager: Client, candidate: Policy) -> None:
    write_completions(
        candidate,
        wrote(1, "old", "An old one.", "length"),
        wrote(0, "new", "A **new** one."),
        wrote(0, "old", "Was before."),
        wrote(1, "new", "Another new one."),
    )
    samples = manager.get(candidate.get_absolute_url()).context["samples"]
    assert [(s.prompt, s.new, s.old) for s in samples] == [
        ("<p>Tell me about a.</p>\n", "<p>A <strong>new</strong> one.</p>\n", "<p>Was before.</p>\n"),
        ("<p>Tell me about b.</p>\n", "<p>Another new one.</p>\n", "<p>An old one.</p>\n"),
    ]
    assert [s.old_is_cut for s in samples] == [False, True]


def test_what_a_policy_wrote_is_shown_as_text_and_cannot_run(manager: Client, candidate: Policy) -> None:
    write_completions(candidate, wrote(0, "new", HOSTILE), wrote(0, "old", HOSTILE))
    page = page_of(manager, candidate)
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page and "<img" not in page


@pytest.mark.parametrize(
    "broken", ["not json\n", '{"request": 0}\n', "[1]\n", '{"request": 0, "policy": "new", "text": 3}\n']
)
def test_a_folder_that_cannot_be_read_leaves_the_rest_of_the_page(
    broken: str, manager: Client, candidate: Policy
) -> None:
    write_completions(candidate)
    (candidate.artifact.run.folder / "completions.jsonl").write_text(broken)
    assert "What it writes" not in page_of(manager, candidate)


def test_the_verdict_of_people_is_told_with_its_interval(
    manager: Client, candidate: Policy, project: Project
) -> None:
    GateDecision.objects.create(
        policy=candidate,
        against=project.current_policy,
        promoted=False,
        win_rate=0.56,
        low=0.44,
        high=0.68,
        labels=48,
        reason="The interval does not lie above one half.",
    )
    page = page_of(manager, candidate)
    for said in ("56 %", "44 % to 68 %", "48 judgements", "Not promoted", "does not lie above one half"):
        assert said in page, said


def test_the_first_policy_of_a_project_has_a_page(manager: Client, project: Project) -> None:
    assert "needed no gate" in page_of(manager, make_starter(project))


def test_an_external_policy_is_not_offered_for_promotion(manager: Client, project: Project) -> None:
    policy = factories.make_policy(project, "people", Policy.State.EXTERNAL)
    assert reverse("policy_promote", args=[policy.pk]) not in page_of(manager, policy)


@pytest.mark.parametrize("name", ["ann", "zed"])
def test_nobody_else_sees_a_policy(
    name: str, client: Client, candidate: Policy, request: pytest.FixtureRequest
) -> None:
    client.force_login(request.getfixturevalue(name))
    assert client.get(candidate.get_absolute_url()).status_code == 404


def test_a_policy_that_is_not_there_is_not_found(manager: Client) -> None:
    assert manager.get(reverse("policy", args=[999])).status_code == 404


def test_a_policy_page_takes_no_post(manager: Client, candidate: Policy) -> None:
    assert manager.post(candidate.get_absolute_url()).status_code == 405


# ---- the override


def promote(client: Client, policy: Policy, reason: str = "It stops telling lies about foxes.") -> Any:
    return client.post(reverse("policy_promote", args=[policy.pk]), {"reason": reason}, follow=True)


def test_a_manager_promotes_a_candidate_with_a_reason_that_is_kept(
    manager: Client, candidate: Policy, project: Project
) -> None:
    page = promote(manager, candidate).content.decode()
    project.refresh_from_db()
    decision = candidate.gate_decisions.get()
    assert project.current_policy == candidate
    assert decision.promoted and decision.decided_by and decision.decided_by.username == "mia"
    assert "It stops telling lies about foxes." in page and "current policy now" in page


@pytest.mark.parametrize("reason", ["", "   ", "yes", "x" * 2001])
def test_without_a_proper_reason_nothing_is_promoted(
    reason: str, manager: Client, candidate: Policy, project: Project
) -> None:
    assert promote(manager, candidate, reason).status_code == 422
    project.refresh_from_db()
    assert project.current_policy != candidate


def test_the_current_policy_is_not_promoted_again(manager: Client, project: Project) -> None:
    answer = promote(manager, make_starter(project))
    assert answer.status_code == 409
    assert "is the current policy already" in answer.content.decode()


@pytest.mark.parametrize("name", ["ann", "zed"])
def test_nobody_else_promotes_a_policy(
    name: str, client: Client, candidate: Policy, request: pytest.FixtureRequest
) -> None:
    client.force_login(request.getfixturevalue(name))
    assert promote(client, candidate).status_code == 404
    assert not candidate.gate_decisions.exists()


def test_a_policy_that_is_not_there_cannot_be_promoted(manager: Client) -> None:
    assert manager.post(reverse("policy_promote", args=[999])).status_code == 404


def test_looking_at_the_override_promotes_nothing(manager: Client, candidate: Policy) -> None:
    assert manager.get(reverse("policy_promote", args=[candidate.pk])).status_code == 405
    assert not candidate.gate_decisions.exists()


def test_what_the_bare_weights_wrote_is_not_said_to_be_a_prompted_policys(
    manager: Client, candidate: Policy
) -> None:
    """As after a distillation of a prompt into the weights."""
    starter = candidate.parent
    assert starter is not None
    prompted = prompting.make_prompted(policy=starter, system_prompt="Be brief.", examples=[])
    candidate.parent = prompted
    candidate.save()
    Run.objects.filter(pk=candidate.artifact.run_id).update(policy=prompted)
    write_completions(candidate, wrote(0, "old", "Old words."), wrote(0, "new", "New words."))
    for address in (candidate.get_absolute_url(), candidate.artifact.run.get_absolute_url()):
        assert "Both without a prompt" in manager.get(address).content.decode()
    assert f"<h3>{prompted}, without its prompt</h3>" in page_of(manager, candidate)
    Run.objects.filter(pk=candidate.artifact.run_id).update(
        config={**candidate.artifact.run.config, "prompt_parts": {"model": {"system_prompt": "Be brief."}}}
    )
    page = page_of(manager, candidate)
    assert "without its prompt" not in page and "Both without a prompt" not in page
