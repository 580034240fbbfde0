"""What the tests of runs start from: a frozen dataset, a policy with a model, a stub for the trainer."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from labeling import datasets, rounds
from labeling.models import Policy, PreferenceDataset, Project, Round
from tests import factories
from tests.labeling.judged import compared_round, make_prompt
from training import runs
from training.launchers.local import LocalLauncher
from training.models import Run
from training.worker import TrainingWorker

STUB = Path(__file__).with_name("stub_trainer.py")
SECONDS = 30.0


def use_stub(settings: Any, behaviour: str = "works") -> None:
    settings.TRAINER_COMMAND = [sys.executable, str(STUB), behaviour]


def make_starter(project: Project) -> Policy:
    """The project's current policy; its location is never loaded here."""
    policy = factories.make_policy(project, "starter")
    policy.location = "org/starter"
    policy.save()
    project.current_policy = policy
    project.save()
    return policy


def make_tiny_starter(project: Project, models: Path) -> Policy:
    """The same with a model that can be loaded, a few thousand parameters small."""
    pytest.importorskip("torch")
    from tests.training_rlhf.conftest import save_tiny_policy

    save_tiny_policy(models / "tiny")
    policy = make_starter(project)
    policy.location = str(models / "tiny")
    policy.save()
    return policy


def make_dataset(project: Project, rater: User, name: str = "first") -> PreferenceDataset:
    judged = compared_round(project, [rater], [[2], [-1], [3], [1]])
    return datasets.freeze(project=project, rounds=[judged], rule="each_label", name=name)


def make_run(project: Project, rater: User, method: str = Run.Method.DPO, **how: Any) -> Run:
    """A run that waits for its preflight, and then starts by itself."""
    policy = project.current_policy or make_starter(project)
    dataset = project.datasets.first() or make_dataset(project, rater)
    how = {"start_when_ready": True, "then_next_round": False, **how}
    return runs.create_run(project=project, method=method, dataset=dataset, policy=policy, **how)


def make_queued_run(project: Project, rater: User, method: str = Run.Method.DPO, **how: Any) -> Run:
    run = make_run(project, rater, method, **how)
    Run.objects.filter(pk=run.pk).update(state=Run.State.QUEUED, preflight={"ok": True})
    run.refresh_from_db()
    return run


def make_sampled_round(project: Project, *, train: int = 6, test: int = 2, **plan: Any) -> Round:
    """A round that waits for completions of the current policy."""
    if project.current_policy is None:
        make_starter(project)
    for split, number in (("train", train), ("test", test)):
        for n in range(number):
            make_prompt(project, f"Tell me about {split} {n}.", split)
    return rounds.create_round(
        project=project,
        protocol=project.protocols.first() or factories.make_protocol(project),
        plan=rounds.RoundPlan(source="sample", train_prompts=train, test_prompts=test, **plan),
    )


def make_worker(name: str = "one", device: str = "cpu:0") -> TrainingWorker:
    return TrainingWorker(launcher=LocalLauncher(device), name=name)


def work_until(worker: TrainingWorker, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Turn the worker until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass in time"
        worker.turn()
        time.sleep(0.02)


def work_through(worker: TrainingWorker, run: Run, seconds: float = SECONDS) -> Run:
    """Turn the worker until the run is over."""
    over = {Run.State.COMPLETE, Run.State.CANCELLED, Run.State.FAILED, Run.State.REFUSED, Run.State.READY}

    def is_over() -> bool:
        run.refresh_from_db()
        return run.state in over

    work_until(worker, is_over, seconds)
    return run


def journal(run: Run) -> list[dict[str, Any]]:
    """What the stub wrote down."""
    path = run.folder / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(pid: int) -> bool:
    """A zombie is dead: only its parent has not looked yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for(holds: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first true answer. For things that other processes do."""
    end = time.monotonic() + seconds
    while True:
        if answer := holds():
            return answer
        if time.monotonic() > end:
            pytest.fail("it did not come to pass in time")
        time.sleep(0.05)
