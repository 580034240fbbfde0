"""Sweeps with the real worker, the real trainer and the real optuna: each run is trained and compared."""

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from labeling.models import Project
from tests.training import stage
from tests.training.test_real_trainer import SECONDS, TINY, one
from training import sweeps
from training.models import Run, Sweep
from training.search_space import Range, Space, Values
from training.sweep_objectives import measured, objective_of
from training.worker import TrainingWorker

pytestmark = pytest.mark.training
__all__ = ["one"]


@pytest.fixture
def parts(project: Project, tmp_path: Path, ann: User) -> dict[str, Any]:
    policy = stage.make_tiny_starter(project, tmp_path / "models")
    dataset = stage.make_dataset(project, ann)
    return {
        "project": project, "policy": policy, "dataset": dataset, "method": "dpo", "objective": "loss",
        "config": TINY | {"training": TINY["training"] | {"max_steps": 2}},
    }  # fmt: skip


def through(worker: TrainingWorker, sweep: Sweep) -> Sweep:
    def is_over() -> bool:
        sweep.refresh_from_db()
        return not sweep.is_live

    stage.work_until(worker, is_over, SECONDS)
    return sweep


def results(sweep: Sweep) -> list[float]:
    goal = objective_of(sweep.method, sweep.objective)
    assert goal is not None
    found = []
    for trial in sweep.trials.select_related("run"):
        assert trial.run is not None, trial.refusal
        assert trial.run.state == Run.State.COMPLETE, trial.run.message
        one = measured(trial.run, goal)
        assert one is not None, trial.run.evaluation
        found.append(one.value)
    return found


def test_three_rates_are_trained_and_compared(parts: dict[str, Any], one: TrainingWorker) -> None:
    space: Space = {"training.learning_rate": Values((1e-6, 1e-4, 1e-2))}
    sweep = through(one, sweeps.create_sweep(**parts, strategy="grid", space=space))
    assert sweep.state == Sweep.State.COMPLETE
    losses = results(sweep)
    assert len(set(losses)) == 3
    assert abs(losses[0] - 0.6931) < abs(losses[2] - 0.6931)  # a rate near 0 leaves it at ln 2


def test_optuna_proposes_run_after_run(parts: dict[str, Any], one: TrainingWorker) -> None:
    pytest.importorskip("optuna")
    space: Space = {"training.learning_rate": Range(1e-6, 1e-2, log=True), "dpo.beta": Values((0.1, 0.5))}
    asked = sweeps.create_sweep(**parts, strategy="bayesian", space=space, runs_wanted=4)
    sweep = through(one, asked)
    assert (sweep.state, len(results(sweep))) == (Sweep.State.COMPLETE, 4)
    rates = [trial.values["training.learning_rate"] for trial in sweep.trials.all()]
    assert len(set(rates)) == 4
    assert all(1e-6 <= rate <= 1e-2 for rate in rates)
