"""Sweeps: ordinary runs that differ in a few settings, compared on one page."""

import sys
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from labeling.models import Project
from tests.training.run_pages import manager, put_in
from tests.training.stage import make_dataset, make_starter
from tests.training.test_run_form import settings_of
from training import sweeps
from training.models import Run, Sweep
from training.search_space import Range, Values
from training.sweeps import SweepRefused

__all__ = ["manager"]
pytestmark = pytest.mark.django_db

State = Run.State
RATES = {"training.learning_rate": Values((1e-5, 1e-4, 1e-3))}


@pytest.fixture
def parts(project: Project, ann: User) -> dict[str, Any]:
    policy, dataset = make_starter(project), make_dataset(project, ann)
    return {
        "project": project,
        "policy": policy,
        "dataset": dataset,
        "method": "dpo",
        "objective": "accuracy",
    }


def begin(parts: dict[str, Any], **how: Any) -> Sweep:
    return sweeps.create_sweep(**{"space": RATES, "strategy": "grid", **parts, **how})


def end(run: Run, accuracy: float) -> None:
    put_in(run, State.COMPLETE, evaluation={"held_out": {"eval_rewards/accuracies": accuracy}})


def trial_runs(sweep: Sweep) -> list[Run]:
    return [trial.run for trial in sweep.trials.select_related("run") if trial.run]


def test_a_grid_queues_a_checked_run_for_each_value(parts: dict[str, Any]) -> None:
    sweep = begin(parts, config={"training": {"epochs": 2.0}, "seed": 5})
    made = trial_runs(sweep)
    assert [run.config["training"]["learning_rate"] for run in made] == [1e-5, 1e-4, 1e-3]
    assert {run.state for run in made} == {State.CHECKING}
    assert all(run.start_when_ready and not run.then_next_round for run in made)
    assert {(run.config["training"]["epochs"], run.config["seed"]) for run in made} == {(2.0, 5)}
    assert sweep.runs_wanted == 3


def test_a_value_that_is_no_recipe_refuses_the_whole_sweep(parts: dict[str, Any]) -> None:
    for strategy in Sweep.Strategy.values:
        with pytest.raises(SweepRefused, match="learning_rate is 7"):
            begin(parts, space={"training.learning_rate": Values((1e-5, 7.0))}, strategy=strategy)
    assert not Run.objects.exists()
    assert not Sweep.objects.exists()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"space": {}}, "at least one setting"),
        ({"space": {"training.no_such": Values((1, 2))}}, "no setting of DPO"),
        ({"space": {"ppo.clip": Values((0.1, 0.2))}}, "no setting of DPO"),
        ({"space": {"dpo.loss": Range(0, 1)}}, "has no range"),
        ({"space": {"training.batch_size": Range(1, 9, points=32), "seed": Range(0, 9, whole=True)}},
         "whole numbers"),
        ({"objective": "win_rate"}, "needs a reward model"),
        ({"objective": "nothing"}, "no figure of DPO"),
        ({"strategy": "luck"}, "no strategy"),
        ({"runs_wanted": 1, "strategy": "random"}, "from 2 to 64"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(parts: dict[str, Any], how: dict[str, Any], why: str) -> None:
    with pytest.raises(SweepRefused, match=why):
        begin(parts, **how)


def test_cancelling_a_sweep_cancels_the_runs_that_wait_and_keeps_those_that_ended(
    parts: dict[str, Any], mia: User
) -> None:
    sweep = begin(parts)
    first, second, third = trial_runs(sweep)
    end(first, 0.7)
    put_in(second, State.RUNNING, device="cpu:0")
    sweeps.cancel(sweep=sweep, by=mia)
    for run in (first, second, third):
        run.refresh_from_db()
    assert (first.state, third.state, second.cancel_asked) == (State.COMPLETE, State.CANCELLED, True)
    assert sweep.state == Sweep.State.CANCELLED
    with pytest.raises(SweepRefused):
        sweep.state = Sweep.State.COMPLETE
        sweep.save()
        sweeps.cancel(sweep=sweep, by=mia)


def test_a_sweep_is_complete_when_its_runs_are_over_failed_ones_too(parts: dict[str, Any]) -> None:
    sweep = begin(parts)
    made = trial_runs(sweep)
    for run, accuracy in zip(made[:2], (0.6, 0.8), strict=True):
        end(run, accuracy)
    sweeps.advance_all()
    assert Sweep.objects.get().state == Sweep.State.RUNNING
    put_in(made[2], State.FAILED, message="Out of memory.")
    assert sweeps.advance_all() == 0
    assert Sweep.objects.get().state == Sweep.State.COMPLETE


def test_the_page_marks_the_best_and_shows_what_failed(parts: dict[str, Any], manager: Client) -> None:
    sweep = begin(parts)
    made = trial_runs(sweep)
    for run, accuracy in zip(made[:2], (0.6, 0.8), strict=True):
        end(run, accuracy)
    put_in(made[2], State.FAILED, message="Out of <memory>.")
    page = manager.get(sweep.get_absolute_url())
    text = page.content.decode()
    assert page.context["best"].trial.run == made[1]
    assert page.context["failed"] == 1
    assert "Out of &lt;memory&gt;." in text
    assert f"?like={made[1].pk}" in text
    assert text.count("<svg") == 1
    fragment = manager.get(sweep.get_absolute_url(), headers={"HX-Request": "true"}).content.decode()
    assert fragment.lstrip().startswith('<div id="sweep-state"')
    assert 'hx-trigger="every 3s"' in fragment
    Sweep.objects.update(state=Sweep.State.COMPLETE)
    over = manager.get(sweep.get_absolute_url(), headers={"HX-Request": "true"}).content.decode()
    assert "every 3s" not in over


def test_nobody_else_sees_or_stops_a_sweep(parts: dict[str, Any], client: Client, ann: User) -> None:
    sweep = begin(parts)
    client.force_login(ann)
    assert client.get(sweep.get_absolute_url()).status_code == 404
    assert client.post(f"{sweep.get_absolute_url()}cancel/").status_code == 404
    assert client.get(f"/projects/{sweep.project.slug}/sweeps/new/").status_code == 404


def test_a_manager_begins_a_sweep_from_the_page_of_a_new_run(parts: dict[str, Any], manager: Client) -> None:
    address = f"/projects/{parts['project'].slug}/sweeps/new/?method=dpo"
    page = manager.get(address)
    asked = {
        "sweep-strategy": "random", "sweep-objective": "accuracy", "sweep-runs_wanted": 4,
        "sweep-minutes": 0, "sweep-setting_1": "training.learning_rate",
        "sweep-values_1": "1e-5 to 1e-3, log", "sweep-setting_2": "dpo.beta", "sweep-values_2": "0.05, 0.1",
    }  # fmt: skip
    answer = manager.post(address, settings_of(page, **asked))
    sweep = Sweep.objects.get()
    assert answer.headers["Location"] == sweep.get_absolute_url()
    assert sweep.space["training.learning_rate"] == {
        "low": 1e-5, "high": 1e-3, "log": True, "whole": False, "points": 3,
    }  # fmt: skip
    assert len(trial_runs(sweep)) == 4
    wrong = manager.post(address, settings_of(page, **asked | {"sweep-values_2": "0.1, 99"}))
    assert wrong.status_code == 422
    assert "beta is 99" in str(wrong.context["sweep_form"].errors["values_2"])
    one_run = f'action="/projects/{parts["project"].slug}/runs/new/?method=dpo"'
    assert one_run in wrong.content.decode()  # not this address: “Check the run” makes a run from here too
    assert Sweep.objects.count() == 1


def test_a_run_is_made_as_ever_when_nobody_fills_the_sweep_in(parts: dict[str, Any], manager: Client) -> None:
    address = f"/projects/{parts['project'].slug}/runs/new/?method=dpo"
    page = manager.get(address)
    manager.post(address, settings_of(page, **{"sweep-strategy": "grid", "sweep-values_1": ""}))
    assert Run.objects.count() == 1
    wrong_button = manager.post(address, settings_of(page, **{"sweep-values_1": "1e-5, 1e-4"}))
    assert (wrong_button.status_code, Run.objects.count()) == (422, 1)
    assert not Sweep.objects.exists()


def test_a_program_begins_follows_and_cancels_a_sweep(parts: dict[str, Any], manager: Client) -> None:
    address = f"/api/v1/projects/{parts['project'].slug}/sweeps/"
    asked = {
        "method": "dpo", "dataset": parts["dataset"].pk, "policy": parts["policy"].pk,
        "objective": "accuracy", "strategy": "random", "runs": 3,
        "space": {"training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
    }  # fmt: skip
    made = manager.post(address, asked, content_type="application/json")
    assert made.status_code == 201, made.content
    shown = manager.get(f"/api/v1/sweeps/{made.json()['id']}/").json()
    assert [trial["state"] for trial in shown["trials"]] == ["checking"] * 3
    cancelled = manager.post(f"/api/v1/sweeps/{shown['id']}/cancel/").json()
    assert cancelled["state"] == "cancelled"
    refused = manager.post(address, asked | {"space": {"a": 1}}, content_type="application/json")
    assert refused.status_code == 400


def test_a_bayesian_sweep_proposes_one_run_after_another_the_same_each_time(
    parts: dict[str, Any],
) -> None:
    pytest.importorskip("optuna")

    def through() -> list[float]:
        sweep = begin(parts, strategy="bayesian", runs_wanted=6,
                      space={"training.learning_rate": Range(1e-6, 1e-2, log=True)})  # fmt: skip
        for number in range(1, 7):
            sweeps.advance_all()
            sweeps.advance_all()  # while it is open no other is proposed
            assert sweep.trials.count() == number
            run = trial_runs(sweep)[-1]
            if number == 3:
                put_in(run, State.FAILED)
            else:
                rate = run.config["training"]["learning_rate"]
                end(run, 1 - abs(rate - 1e-4))
        sweeps.advance_all()
        sweep.refresh_from_db()
        assert sweep.state == Sweep.State.COMPLETE
        rates = [trial.values["training.learning_rate"] for trial in sweep.trials.all()]
        assert all(1e-6 <= rate <= 1e-2 for rate in rates)
        return rates

    assert through() == through()


def test_a_sweep_adds_no_run_once_its_minutes_are_used_up(parts: dict[str, Any]) -> None:
    pytest.importorskip("optuna")
    from datetime import timedelta

    from django.utils import timezone

    sweep = begin(parts, strategy="bayesian", runs_wanted=6, minutes=5)
    sweeps.advance_all()
    now = timezone.now()
    end(trial_runs(sweep)[0], 0.5)
    Run.objects.update(started_at=now - timedelta(minutes=6), ended_at=now)
    sweeps.advance_all()
    sweep.refresh_from_db()
    assert (sweep.state, sweep.trials.count()) == (Sweep.State.COMPLETE, 1)
    assert "5 minutes" in sweep.message


def test_the_settings_of_a_trial_fill_in_a_new_run(parts: dict[str, Any], manager: Client) -> None:
    run = trial_runs(begin(parts))[2]
    page = manager.get(f"/projects/{parts['project'].slug}/runs/new/?like={run.pk}")
    assert page.context["form"]["learning_rate"].value() == 1e-3


def test_a_worker_without_optuna_says_what_to_install(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, manager: Client
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    sweep = begin(parts, strategy="bayesian", runs_wanted=6)
    assert sweeps.advance_all() == 0
    sweep.refresh_from_db()
    assert sweep.state == Sweep.State.FAILED
    assert "ratchet[training]" in manager.get(sweep.get_absolute_url()).content.decode()
