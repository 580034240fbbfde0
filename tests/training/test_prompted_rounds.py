"""Prompting and training compared by people, and a round by a server: real worker, trainer and server."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from django.contrib.auth.models import User
from django.test import Client

from labeling import assignment, model_servers, policies, prompting, rounds
from labeling.labels import save_label
from labeling.models import Completion, Policy, Project, Round
from tests import factories
from tests.labeling.judged import make_prompt
from tests.training import stage
from tests.training.test_real_trainer import SECONDS, TINY
from training import gate, runs
from training.models import Run
from training.rlhf.prompt_parts import PromptParts
from training.worker import TrainingWorker

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [("Say hi.", "Hi!"), ("Say bye.", "Bye!")]


@pytest.fixture
def one(settings: Any) -> TrainingWorker:
    settings.RUN_LEASE_SECONDS = 30
    return stage.make_worker()


@pytest.fixture
def starter(project: Project, tmp_path: Path) -> Policy:
    return stage.make_tiny_starter(project, tmp_path / "models")


def test_people_compare_a_trained_policy_with_a_prompted_one(
    project: Project,
    starter: Policy,
    ann: User,
    mia: User,
    one: TrainingWorker,
    client: Client,
    django_capture_on_commit_callbacks: Any,
) -> None:
    dpo = stage.work_through(one, stage.make_run(project, ann, config=TINY), SECONDS)
    assert dpo.state == Run.State.COMPLETE, dpo.message
    trained = Policy.objects.get(artifact__run=dpo)
    prompted = prompting.make_prompted(policy=starter, system_prompt="Be brief.", examples=EXAMPLES)
    for number in range(12):
        make_prompt(project, f"Held out {number}.", "test")
    make_prompt(project, "To train on.", "train")
    round = rounds.create_round(
        project=project,
        protocol=factories.make_protocol(project),
        plan=rounds.RoundPlan(source="sample", train_prompts=1, gate_prompts=12, max_new_tokens=8),
        new_policy=prompted,
        against=trained,
    )
    sampling = stage.work_through(one, runs.queue_sampling(round), SECONDS)
    assert sampling.state == Run.State.COMPLETE, sampling.message
    version = PromptParts(system_prompt="Be brief.", examples=tuple(prompted.examples)).version
    by_prompted = Completion.objects.filter(policy=prompted)
    assert {one.sampling["prompt_version"] for one in by_prompted} == {version}
    by_trained = Completion.objects.filter(policy=trained, sampling__run=sampling.pk)
    assert len(by_trained) == 12 and all("prompt_version" not in one.sampling for one in by_trained)

    round.refresh_from_db()
    while (task := assignment.next_assignment(round=round, rater=ann)) is not None:
        value = preference_for(prompted, task.shown)
        save_label(assignment=task, rater=ann, value=value, key=uuid.uuid4(), seconds=1.0)
    with django_capture_on_commit_callbacks(execute=True):
        rounds.close_round(round)
    decision = gate.evaluate_gate(round)
    assert decision is not None and (decision.policy, decision.against) == (prompted, trained)
    assert decision.win_rate == 1.0
    assert not decision.promoted and "starter is the current policy" in decision.reason  # it beat another one

    client.force_login(mia)
    page = client.get(round.get_absolute_url()).content.decode()
    assert f"{prompted.name}</a> (new) against" in page and "100 %" in page
    assert "starter, and stays it" in page
    client.force_login(ann)
    assert prompted.name not in client.get(f"/rounds/{round.pk}/judge/").content.decode()


def preference_for(policy: Policy, shown: list[int]) -> dict[str, Any]:
    """The far better one is the policy's; where both are, the first."""
    by = dict(Completion.objects.filter(pk__in=shown).values_list("pk", "policy"))
    place = next(place for place, pk in enumerate(shown) if by[pk] == policy.pk)
    return {"outcome": "preferred", "preferred": shown[place], "strength": 4}


@pytest.fixture
def server(tmp_path: Path, settings: Any) -> Iterator[str]:
    """The starter policy behind our own OpenAI-compatible server, a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = open(tmp_path / "serve.log", "wb")  # noqa: SIM115
    command = [sys.executable, "-m", "training.rlhf.serve", str(settings.STARTER_POLICY)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--name", "starter"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RATCHET_SERVE_KEY": "sesame"},
        stdout=log,
        stderr=log,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        stage.wait_for(lambda: answers(address) or process.poll() is not None, SECONDS)
        assert process.poll() is None, (tmp_path / "serve.log").read_text()
        yield f"{address}/v1"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def answers(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health", timeout=2).status_code == 200
    except httpx2.TransportError:
        time.sleep(0.2)
        return False


def test_a_round_is_written_by_a_server_that_keeps_the_weights(
    project: Project,
    mia: User,
    one: TrainingWorker,
    server: str,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RATCHET_MODEL_SERVER_KEY", "sesame")
    settings.MODEL_SERVERS = [server]
    policies.choose_policy(project=project, location=str(settings.STARTER_POLICY))
    served = model_servers.add_served(project=project, address=server, model_name="starter")
    prompted = prompting.make_prompted(policy=served, system_prompt="", examples=EXAMPLES)
    for number in range(4):
        make_prompt(project, f"Tell me a story about a fox, {number}.", "test")
        make_prompt(project, f"Tell me a story about a hare, {number}.", "train")
    round = rounds.create_round(
        project=project,
        protocol=factories.make_protocol(project),
        plan=rounds.RoundPlan(source="sample", train_prompts=4, gate_prompts=4, max_new_tokens=24),
        new_policy=prompted,
        against=served,
    )
    run = stage.work_through(one, runs.queue_sampling(round), SECONDS)
    assert run.state == Run.State.COMPLETE, f"{run.message}\n{run.stderr_tail}"
    round.refresh_from_db()
    assert (round.state, round.tasks.count()) == (Round.State.OPEN, 8)
    written = Completion.objects.filter(prompt__project=project)
    assert {one.policy for one in written} == {served, prompted}
    assert all(one.text.strip() and one.sampling["tokens"] > 0 for one in written)
    first = written.filter(policy=served)[0].sampling
    assert (first["server"], first["model"], first["reported_model"]) == (server, "starter", "starter")
    assert first["fingerprint"].startswith("template-")
    assert "sesame" not in str(run.config) + str([one.sampling for one in written])
