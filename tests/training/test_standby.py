"""A child that stands by checks and trains as a child of its own would, and nothing of it stays behind."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from labeling.models import Policy, Project
from tests.training import stage
from tests.training.test_real_trainer import TINY
from training.launchers.local import LocalLauncher
from training.launchers.local_child import LocalChild
from training.models import Run
from training.worker import TrainingWorker

pytestmark = pytest.mark.training

SECONDS = 240.0


@pytest.fixture
def starter(project: Project, tmp_path: Path) -> Policy:
    return stage.make_tiny_starter(project, tmp_path / "models")


@pytest.fixture
def launcher(settings: Any) -> Iterator[LocalLauncher]:
    settings.RUN_LEASE_SECONDS = 30
    launcher = LocalLauncher("cpu:0", standby=True)
    launcher.prepare()
    yield launcher
    launcher.close()


def standby_pid(launcher: LocalLauncher) -> int:
    assert launcher._standby is not None
    return launcher._standby.process.pid


def child_pid(worker: TrainingWorker) -> int:
    assert worker.device_lane is not None and isinstance(worker.device_lane.child, LocalChild)
    return worker.device_lane.child.pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_standby_checks_a_run_and_then_trains_it(
    project: Project, starter: Policy, ann: User, launcher: LocalLauncher
) -> None:
    waiting = standby_pid(launcher)
    run = stage.make_run(project, ann, Run.Method.REWARD_MODEL, config=TINY)
    worker = TrainingWorker(launcher=launcher, name="one")
    stage.work_until(worker, lambda: worker.device_lane is not None and worker.device_lane.child is not None)
    assert child_pid(worker) == waiting
    assert standby_pid(launcher) != waiting, "another one gets ready for the next run"
    stage.work_through(worker, run, SECONDS)
    assert run.state == Run.State.COMPLETE, f"{run.message}\n{run.stderr_tail}"
    assert run.preflight["ok"] and run.step == 4
    assert not is_alive(waiting)


def test_a_refused_preflight_says_why_and_leaves_the_standby_to_others(
    project: Project, starter: Policy, ann: User, launcher: LocalLauncher
) -> None:
    starter.location = "/nowhere/at/all"
    starter.save()
    waiting = standby_pid(launcher)
    run = stage.make_run(project, ann, config=TINY)
    stage.work_through(TrainingWorker(launcher=launcher, name="one"), run, SECONDS)
    assert run.state == Run.State.REFUSED
    assert "/nowhere/at/all" in run.message
    assert standby_pid(launcher) == waiting and is_alive(waiting)


def test_a_run_starts_without_the_standby_that_died(
    project: Project, starter: Policy, ann: User, launcher: LocalLauncher
) -> None:
    os.kill(standby_pid(launcher), 9)
    run = stage.make_queued_run(project, ann, Run.Method.REWARD_MODEL, config=TINY)
    stage.work_through(TrainingWorker(launcher=launcher, name="one"), run, SECONDS)
    assert run.state == Run.State.COMPLETE, f"{run.message}\n{run.stderr_tail}"


def test_what_a_dead_worker_left_standing_by_is_found_by_its_lock(
    project: Project, starter: Policy, ann: User, launcher: LocalLauncher
) -> None:
    endless = {**TINY, "training": {**TINY["training"], "max_steps": 100_000}}
    run = stage.make_queued_run(project, ann, Run.Method.REWARD_MODEL, config=endless)
    worker = TrainingWorker(launcher=launcher, name="one")
    stage.work_until(worker, lambda: (Path(run.folder) / "lock").exists(), SECONDS)
    child = child_pid(worker)
    end = time.monotonic() + 60
    while (Path(run.folder) / "lock").read_text() != str(child):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert LocalLauncher("cpu:0").evict(Path(run.folder)) is None
    assert not is_alive(child)


def test_a_worker_that_leaves_takes_its_standby_along(launcher: LocalLauncher, db: None) -> None:
    pytest.importorskip("torch")
    waiting = standby_pid(launcher)
    TrainingWorker(launcher=launcher, name="one").serve(batch=True)
    assert not is_alive(waiting)
