"""Runs as people ask for them: what is created, what is refused, and who may still change what."""

import json
from pathlib import Path
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import User
from django.db import IntegrityError
from django.db.models.functions import Now

from labeling.models import Project
from labeling.policies import starter_folder
from labeling.rounds import close_round
from tests import factories
from tests.training import stage
from training import runs
from training.models import Run, Worker
from training.recipes import default_settings
from training.rlhf.config import RunConfig
from training.run_folders import FolderNotWritten, write_run_folder

State = Run.State


def test_a_new_run_waits_for_its_check_with_a_whole_recipe(project: Project, ann: User, mia: User) -> None:
    run = stage.make_run(
        project, ann, start_when_ready=False, created_by=mia, config={"dpo": {"beta": 0.3}, "seed": 5}
    )
    config = RunConfig.from_json(run.config)
    assert run.state == State.CHECKING
    assert (config.method, config.model, config.seed) == ("dpo", "org/starter", 5)
    assert config.dpo.beta == 0.3
    assert config.training.learning_rate != RunConfig(method="dpo", model="x").training.learning_rate


def test_a_policy_from_elsewhere_is_tuned_by_adapters_and_the_starter_as_a_whole(project: Project) -> None:
    elsewhere = stage.make_starter(project)
    starter = factories.make_policy(project, "the real starter")
    starter.location = str(starter_folder())
    starter.save()
    child = factories.make_policy(project, "its child")
    child.parent = starter
    child.save()
    kinds = [
        default_settings(method="dpo", policy=policy).get("tuning", {}).get("kind", "full")
        for policy in (elsewhere, starter, child)
    ]
    assert kinds == ["lora", "full", "full"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"training": {"learning_rate": 7.0}}, "learning_rate"),
        ({"training": {"speed": 1}}, "training.speed"),
        ({"seed": -1}, "seed"),
        ({"tuning": {"kind": "magic"}}, "tuning.kind"),
        ({"tuning": {"lora_alpha": 10**400}}, "lora_alpha"),
        ({"tuning": {"lora_alpha": 10_001}}, "lora_alpha"),
        ({"training": {"max_steps": 10_000_001}}, "max_steps"),
        ({"training": {"save_every": 10**30}}, "save_every"),
        ({"training": {"log_every": 10**9}}, "log_every"),
        ({"training": {"max_grad_norm": float("inf")}}, "max_grad_norm"),
        ({"training": {"max_grad_norm": 10**400}}, "max_grad_norm"),
        ({"policies": {"a": "\ud800"}}, "policies.a"),
        ({"policies": {"a": "x\0y"}}, "policies.a"),
        ({"policies": {"\ud800": "a"}}, "policies"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_by_name(
    project: Project, ann: User, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(runs.RunRefused, match=said):
        stage.make_run(project, ann, config=config)
    assert not Run.objects.exists()


def test_parts_of_another_project_are_refused(project: Project, ann: User) -> None:
    other = factories.make_project("Other")
    mine, theirs = stage.make_starter(project), stage.make_starter(other)
    dataset = stage.make_dataset(project, ann)
    with pytest.raises(runs.RunRefused, match="dataset"):
        runs.create_run(project=other, method="dpo", dataset=dataset, policy=theirs)
    with pytest.raises(runs.RunRefused, match="policy"):
        runs.create_run(project=project, method="dpo", dataset=dataset, policy=theirs)
    mine.location = ""
    mine.save()
    with pytest.raises(runs.RunRefused, match="no model"):
        runs.create_run(project=project, method="dpo", dataset=dataset, policy=mine)


def test_a_ready_run_starts_once_however_often_it_is_asked(project: Project, ann: User, mia: User) -> None:
    run = stage.make_run(project, ann)
    with pytest.raises(runs.RunRefused, match="checking"):
        runs.start(run=run, by=mia)
    Run.objects.update(state=State.READY)
    assert runs.start(run=run, by=mia).state == State.QUEUED
    assert runs.start(run=run, by=mia).state == State.QUEUED
    entry = LogEntry.objects.get_for_object(run).filter(action=LogEntry.Action.UPDATE).get()
    assert (entry.actor, entry.changes["state"]) == (mia, ["ready", "queued"])


@pytest.mark.parametrize("state", [State.CHECKING, State.READY, State.QUEUED])
def test_what_has_not_started_is_cancelled_at_once(
    project: Project, ann: User, mia: User, state: str
) -> None:
    run = stage.make_run(project, ann)
    Run.objects.update(state=state)
    assert runs.cancel(run=run, by=mia).state == State.CANCELLED
    assert runs.cancel(run=run, by=mia).state == State.CANCELLED


def test_a_running_run_is_only_asked_to_stop(project: Project, ann: User, mia: User) -> None:
    run = stage.make_queued_run(project, ann)
    Run.objects.update(state=State.RUNNING, worker="one", device="cpu:0", leased_until="2999-01-01T00:00:00Z")
    runs.cancel(run=run, by=mia)
    assert (run.state, run.cancel_asked, run.can_cancel) == (State.RUNNING, True, False)


def test_a_run_whose_worker_is_gone_can_still_be_cancelled(project: Project, ann: User, mia: User) -> None:
    run = stage.make_queued_run(project, ann)
    Run.objects.update(state=State.RUNNING, worker="one", device="cpu:0", leased_until="2020-01-01T00:00:00Z")
    assert runs.cancel(run=run, by=mia).state == State.CANCELLED


def test_a_run_that_its_worker_lets_go_while_it_is_cancelled_is_cancelled(
    project: Project, ann: User, mia: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage.make_queued_run(project, ann)
    Run.objects.update(state=State.RUNNING, worker="one", device="cpu:0", leased_until="2999-01-01T00:00:00Z")
    move, looks = runs._move, []

    def release_in_between(*args: Any, **how: Any) -> bool:
        looks.append(how)
        if len(looks) == 2:  # the first found it running
            Run.objects.update(state=State.QUEUED, worker="", leased_until=None)
        return move(*args, **how)

    monkeypatch.setattr(runs, "_move", release_in_between)
    assert runs.cancel(run=run, by=mia).state == State.CANCELLED


def test_what_is_over_cannot_be_cancelled_and_what_is_complete_cannot_go_on(
    project: Project, ann: User, mia: User
) -> None:
    run = stage.make_run(project, ann)
    Run.objects.update(state=State.COMPLETE)
    with pytest.raises(runs.RunRefused, match="complete"):
        runs.cancel(run=run, by=mia)
    with pytest.raises(runs.RunRefused, match="complete"):
        runs.resume(run=run, by=mia)


@pytest.mark.parametrize(
    ("state", "preflight", "then"),
    [
        (State.FAILED, {"ok": True}, State.QUEUED),
        (State.CANCELLED, {"ok": True}, State.QUEUED),
        (State.CANCELLED, {}, State.CHECKING),
        (State.REFUSED, {"ok": False}, State.CHECKING),
    ],
)
def test_a_run_goes_on_from_where_it_stopped(
    project: Project, ann: User, mia: User, state: str, preflight: dict[str, Any], then: str
) -> None:
    run = stage.make_run(project, ann)
    Run.objects.update(state=state, preflight=preflight, fruitless_attempts=3, cancel_asked=True)
    run.refresh_from_db()
    assert run.can_resume
    runs.resume(run=run, by=mia)
    assert (run.state, run.fruitless_attempts, run.cancel_asked) == (then, 0, False)


# --- sampling -----------------------------------------------------------------------------------------------


def test_a_round_that_wants_completions_has_one_sampling_run(
    project: Project, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        round = stage.make_sampled_round(project, temperature=0.7, max_new_tokens=32, seed=3)
    run = Run.objects.get()
    config = RunConfig.from_json(run.config)
    assert (run.method, run.state, run.round) == ("sample", State.QUEUED, round)
    assert list(config.policies.values()) == ["org/starter"]
    assert (config.sampling.temperature, config.sampling.max_new_tokens, config.seed) == (0.7, 32, 3)
    assert runs.queue_sampling(round) == run
    with pytest.raises(IntegrityError):
        Run.objects.create(project=project, method="sample", state=State.QUEUED, round=round)


def test_a_round_whose_signal_was_lost_is_found_again(project: Project) -> None:
    round = stage.make_sampled_round(project)  # no commit in this test: nobody hears the signal
    assert [run.round for run in runs.queue_missing_sampling()] == [round]
    assert runs.queue_missing_sampling() == []


def test_a_round_whose_policy_has_no_model_says_so(project: Project) -> None:
    policy = stage.make_starter(project)
    policy.location = ""
    policy.save()
    run = runs.queue_sampling(stage.make_sampled_round(project))
    assert run.state == State.REFUSED
    assert "No model is known for starter" in run.message


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED, State.REFUSED])
def test_writing_for_a_round_that_does_not_wait_any_more_is_not_resumed(
    project: Project, mia: User, state: str
) -> None:
    round = stage.make_sampled_round(project)
    run = runs.queue_sampling(round)
    Run.objects.update(state=state)
    run.refresh_from_db()
    close_round(round)
    with pytest.raises(runs.RunRefused, match="does not wait for completions any more"):
        runs.resume(run=run, by=mia)
    run.refresh_from_db()
    assert run.state == state


def test_a_waiting_round_that_is_closed_stops_its_sampling(
    project: Project, django_capture_on_commit_callbacks: Any
) -> None:
    waiting, running = stage.make_sampled_round(project), stage.make_sampled_round(project)
    unstarted, started = runs.queue_sampling(waiting), runs.queue_sampling(running)
    leased = {"worker": "one", "device": "cpu:0", "leased_until": "2999-01-01T00:00:00Z"}
    Run.objects.filter(pk=started.pk).update(state=State.RUNNING, **leased)
    for round in (waiting, running):
        with django_capture_on_commit_callbacks(execute=True):
            close_round(round)
    unstarted.refresh_from_db()
    started.refresh_from_db()
    assert unstarted.state == State.CANCELLED
    assert (started.state, started.cancel_asked) == (State.RUNNING, True)
    assert runs.cancel_unwanted_sampling() == []


def test_sampling_of_a_closed_round_whose_signal_was_lost_is_found(project: Project) -> None:
    round, other = stage.make_sampled_round(project), stage.make_sampled_round(project)
    run, wanted = runs.queue_sampling(round), runs.queue_sampling(other)
    close_round(round)  # no commit in this test: nobody hears the signal
    assert runs.cancel_unwanted_sampling() == [run]
    wanted.refresh_from_db()
    assert wanted.state == State.QUEUED


# --- the folder ---------------------------------------------------------------------------------------------


def test_the_folder_holds_the_recipe_the_rows_and_the_held_out_prompts(project: Project, ann: User) -> None:
    run = stage.make_run(project, ann)
    folder = write_run_folder(run)
    assert RunConfig.load(folder.config).to_json() == run.config
    train = [json.loads(line) for line in (folder.data / "pairs.train.jsonl").read_text().splitlines()]
    test = [json.loads(line) for line in (folder.data / "prompts.test.jsonl").read_text().splitlines()]
    assert len(train) == 3
    assert set(train[0]) >= {"prompt", "chosen", "rejected", "margin", "weight", "p"}
    assert [row["prompt"][0]["role"] for row in test] == ["user"]
    assert json.loads((folder.data / "manifest.json").read_text())["tables"]["pairs"]["train"] == 3


def test_a_run_may_spoil_its_rows_but_not_the_dataset(project: Project, ann: User) -> None:
    run = stage.make_run(project, ann)
    folder = write_run_folder(run)
    (folder.data / "pairs.train.jsonl").write_text("spoilt")
    second = stage.make_run(project, ann)
    assert "spoilt" not in (write_run_folder(second).data / "pairs.train.jsonl").read_text()


def test_a_dataset_that_was_changed_is_not_trained_on(project: Project, ann: User, settings: Any) -> None:
    run = stage.make_run(project, ann)
    assert run.dataset is not None
    rows = Path(settings.DATASETS_DIR) / run.dataset.folder / "pairs" / "train.jsonl"
    rows.chmod(0o644)
    rows.write_text(rows.read_text().replace("fox", "hen"))
    with pytest.raises(FolderNotWritten, match="changed after"):
        write_run_folder(run)
    assert not run.folder.exists()


def test_a_folder_left_by_another_database_is_set_aside(project: Project, ann: User) -> None:
    run = stage.make_run(project, ann)
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text("{}")
    folder = write_run_folder(run)
    assert not folder.is_complete
    assert len(list(run.folder.parent.glob(f"{run.pk}.before-*"))) == 1


def test_an_earlier_attempts_folder_is_kept_as_it_is(project: Project, ann: User) -> None:
    run = stage.make_run(project, ann)
    write_run_folder(run)
    (run.folder / "progress.jsonl").write_text("kept")
    assert write_run_folder(run).progress.read_text() == "kept"


def test_requests_stand_for_tasks_line_by_line(project: Project) -> None:
    run = runs.queue_sampling(stage.make_sampled_round(project, train=3, test=1))
    data = write_run_folder(run).data
    requests = [json.loads(line) for line in (data / "requests.jsonl").read_text().splitlines()]
    tasks = [json.loads(line) for line in (data / "tasks.jsonl").read_text().splitlines()]
    assert [task["purpose"] for task in tasks] == ["train", "train", "train", "test"]
    assert all(len(request["policies"]) == 2 for request in requests)
    assert set(requests[0]["policies"]) == set(run.config["policies"])


# --- workers ------------------------------------------------------------------------------------------------


def test_a_worker_that_was_not_seen_for_long_counts_as_gone(db: None) -> None:
    Worker.objects.create(name="gone", device="cpu:0", seen_at="2020-01-01T00:00:00Z")
    assert runs.workers_alive() == []
    Worker.objects.create(name="here", device="cpu:0", seen_at=Now())
    assert [worker.name for worker in runs.workers_alive()] == ["here"]
