"""The worker with the real trainer: sampling, reward model, DPO, the next round; cancelled and resumed."""

import time
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from labeling.models import Policy, Project, Round
from tests.training import stage
from training import runs
from training.models import Artifact, Run
from training.worker import TrainingWorker

pytestmark = pytest.mark.training

State = Run.State
SECONDS = 240.0
TINY: dict[str, Any] = {
    "tuning": {"kind": "full"},
    "training": {
        "max_steps": 4,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "max_length": 128,
        "gradient_checkpointing": False,
        "log_every": 1,
        "save_every": 2,
    },
    "sampling": {"max_new_tokens": 8, "batch_size": 8},
}


@pytest.fixture
def starter(project: Project, tmp_path: Path) -> Policy:
    return stage.make_tiny_starter(project, tmp_path / "models")


@pytest.fixture
def one(settings: Any) -> TrainingWorker:
    settings.RUN_LEASE_SECONDS = 30
    return stage.make_worker()


def come_home(one: TrainingWorker, run: Run) -> Run:
    stage.work_through(one, run, SECONDS)
    assert run.state == State.COMPLETE, f"{run.message}\n{run.stderr_tail}"
    return run


def test_judged_pairs_become_a_reward_model_a_policy_and_the_next_round(
    project: Project,
    starter: Policy,
    ann: User,
    one: TrainingWorker,
    django_capture_on_commit_callbacks: Any,
) -> None:
    round = stage.make_sampled_round(project, train=4, test=2, max_new_tokens=8)
    come_home(one, runs.queue_sampling(round))
    round.refresh_from_db()
    assert (round.state, round.tasks.count()) == (Round.State.OPEN, 6)

    reward = come_home(one, stage.make_run(project, ann, Run.Method.REWARD_MODEL, config=TINY))
    assert reward.preflight["ok"] and reward.evaluation
    assert reward.step == reward.total_steps == 4

    with django_capture_on_commit_callbacks(execute=True):
        artifact = Artifact.objects.get(run=reward)
        dpo = stage.make_run(project, ann, config=TINY, reward_model=artifact, then_next_round=True)
        come_home(one, dpo)
    candidate = Policy.objects.get(artifact__run=dpo)
    assert candidate.parent == starter
    assert "loss" in {name for metric in dpo.metrics.all() for name in metric.values}
    assert dpo.next_round is not None and dpo.next_round.new_policy == candidate
    assert Run.objects.get(round=dpo.next_round).state == State.QUEUED


def test_a_cancelled_run_is_saved_within_five_seconds_and_goes_on(
    project: Project, starter: Policy, ann: User, mia: User, one: TrainingWorker
) -> None:
    long = {**TINY, "training": {**TINY["training"], "max_steps": 200, "save_every": 1000}}
    run = stage.make_queued_run(project, ann, config=long)

    def is_under_way() -> bool:
        run.refresh_from_db()
        assert run.state in (State.QUEUED, State.RUNNING), run.message
        return run.step >= 3

    stage.work_until(one, is_under_way, SECONDS)
    asked = time.monotonic()
    runs.cancel(run=run, by=mia)
    stage.work_through(one, run)
    assert time.monotonic() - asked < 5
    assert run.state == State.CANCELLED
    assert 3 <= run.checkpoint_step < 200
    runs.resume(run=run, by=mia)
    come_home(one, run)
    steps = [metric.step for metric in run.metrics.order_by("seq") if "loss" in metric.values]
    assert steps == list(range(1, 201))
