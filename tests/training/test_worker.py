"""The worker, unit by unit, with a stub for the trainer: the contract kept, and broken in every known way."""

import errno
import io
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import OperationalError
from django.db.models.functions import Now

from labeling.models import Project
from tests.training import stage
from tests.training.stage import journal, work_until
from training import endings, leases, runs, supervision, worker
from training.launchers.local import LocalLauncher, child_environment
from training.launchers.local_child import LocalChild
from training.models import Artifact, Metric, Run, Worker
from training.progress import parse_progress

pytestmark = pytest.mark.slow

State = Run.State


@pytest.fixture(autouse=True)
def _quick(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.RUN_LEASE_SECONDS = 6
    stage.use_stub(settings)
    monkeypatch.setattr(supervision, "GRACE_SECONDS", 1)


# --- the way of a run that nothing disturbs -----------------------------------------------------------------


def test_a_run_is_checked_started_followed_and_brought_home(project: Project, ann: User) -> None:
    run = stage.work_through(stage.make_worker(), stage.make_run(project, ann))
    assert (run.state, run.attempt, run.step, run.total_steps) == (State.COMPLETE, 1, 20, 20)
    assert run.preflight["ok"] and run.evaluation == {"accuracy": 0.75}
    losses = list(Metric.objects.filter(run=run).values_list("step", "values"))
    assert losses == [(step, {"loss": 1 / step}) for step in range(1, 21)]
    assert (run.worker, run.leased_until) == ("", None)
    assert Artifact.objects.get(run=run).policy is not None


def test_a_checked_run_waits_for_a_person_unless_it_was_told_not_to(project: Project, ann: User) -> None:
    run = stage.work_through(stage.make_worker(), stage.make_run(project, ann, start_when_ready=False))
    assert (run.state, run.can_start) == (State.READY, True)
    assert [line["event"] for line in journal(run)] == ["start"]


def test_a_run_that_its_check_refuses_says_why(project: Project, ann: User, settings: Any) -> None:
    stage.use_stub(settings, "check refuses")
    run = stage.work_through(stage.make_worker(), stage.make_run(project, ann))
    assert run.state == State.REFUSED
    assert run.message == "Every row is too long. (pairs.train.jsonl) Raise max_length."


def test_a_check_that_dies_is_no_refusal(project: Project, ann: User, settings: Any) -> None:
    stage.use_stub(settings, "check dies")
    run = stage.work_through(stage.make_worker(), stage.make_run(project, ann))
    assert run.state == State.FAILED
    assert "signal 9" in run.message


def test_a_check_does_not_wait_for_a_run_on_the_device(project: Project, ann: User) -> None:
    one = stage.make_worker()
    running = stage.make_queued_run(project, ann)
    work_until(one, lambda: bool(journal(running)))
    checked = stage.make_run(project, ann, start_when_ready=False)
    stage.work_through(one, checked)
    running.refresh_from_db()
    assert (checked.state, running.state) == (State.READY, State.RUNNING)


def test_sampling_goes_before_training_since_raters_wait(project: Project, ann: User) -> None:
    training = stage.make_queued_run(project, ann)
    sampling = runs.queue_sampling(stage.make_sampled_round(project))
    claimed = leases.claim_run(worker="one", device="cpu:0")
    assert claimed == sampling
    assert training.pk < sampling.pk


def test_the_child_knows_neither_the_database_nor_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RATCHET_DATABASE",
        "RATCHET_SECRET_KEY",
        "DJANGO_SETTINGS_MODULE",
        "PGPASSWORD",
        "AWS_SECRET",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_HOME", "/cache")
    given = child_environment("cpu:0")
    assert "secret" not in given.values()
    assert (given["HF_HOME"], given["RATCHET_PARENT_PID"]) == ("/cache", str(os.getpid()))


@pytest.mark.parametrize(
    ("device", "visible_here", "visible_there"),
    [("cpu:0", "0,1", ""), ("cuda:1", "", "1"), ("cuda:1", "4,7", "7"), ("cuda", "", "0")],
)
def test_the_child_sees_the_device_of_its_worker_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, visible_here: str, visible_there: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible_here)
    assert child_environment(device)["CUDA_VISIBLE_DEVICES"] == visible_there


# --- the zoo ------------------------------------------------------------------------------------------------


def test_a_trainer_that_dies_without_a_word_is_tried_three_times(
    project: Project, ann: User, settings: Any
) -> None:
    stage.use_stub(settings, "crashes")
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert (run.state, run.attempt, run.fruitless_attempts) == (State.FAILED, 3, 3)
    assert "status 1" in run.message
    assert "something broke" in run.stderr_tail


def test_a_new_checkpoint_forgives_the_attempts_before_it(project: Project, ann: User, settings: Any) -> None:
    stage.use_stub(settings, "dies at step 7")  # saved step 5; later attempts begin at 6 and die at 7 again
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert run.state == State.FAILED
    assert (run.attempt, run.checkpoint_step) == (3, 5)
    assert "It goes on from step 5." in run.message
    assert [line["step"] for line in journal(run) if line["event"] == "step"] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        6,
        7,
        6,
        7,
    ]


def test_a_trainer_that_never_saves_begins_anew_and_not_for_ever(
    project: Project, ann: User, settings: Any
) -> None:
    stage.use_stub(settings, "never saves")
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert (run.state, run.attempt) == (State.FAILED, 3)
    assert "begins anew" in run.message


def test_a_child_that_is_killed_once_goes_on_from_its_checkpoint(
    project: Project, ann: User, settings: Any
) -> None:
    stage.use_stub(settings, "dies once")
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert (run.state, run.attempt, run.fruitless_attempts) == (State.COMPLETE, 2, 0)
    steps = [line["step"] for line in journal(run) if line["event"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6, 7, *range(6, 21)]


@pytest.mark.parametrize(("behaviour", "said"), [("refuses", "No row is left."), ("explains", "Free space.")])
def test_a_trainer_that_says_what_is_wrong_is_not_tried_again(
    project: Project, ann: User, settings: Any, behaviour: str, said: str
) -> None:
    stage.use_stub(settings, behaviour)
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert (run.state, run.attempt) == (State.FAILED, 1)
    assert said in run.message


def test_a_trainer_that_leaves_no_result_has_not_ended_well(
    project: Project, ann: User, settings: Any
) -> None:
    stage.use_stub(settings, "no result")
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert run.state == State.FAILED
    assert "without a result.json" in run.message
    assert not Artifact.objects.exists()


@pytest.mark.parametrize("behaviour", ["garbage progress", "torn line"])
def test_garbage_in_the_progress_costs_neither_the_run_nor_its_figures(
    project: Project, ann: User, settings: Any, behaviour: str
) -> None:
    stage.use_stub(settings, behaviour)
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert run.state == State.COMPLETE
    assert [metric.values["loss"] for metric in run.metrics.all()] == [1 / step for step in range(1, 21)]


def test_what_a_child_prints_does_not_fill_the_disk(project: Project, ann: User, settings: Any) -> None:
    stage.use_stub(settings, "fills stderr")  # 40 MB
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert run.state == State.COMPLETE
    assert sum(path.stat().st_size for path in run.folder.glob("*.log")) < 17_000_000


def test_nothing_that_a_child_started_outlives_it(project: Project, ann: User, settings: Any) -> None:
    stage.use_stub(settings, "leaves a grandchild")
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    (left,) = [line["grandchild"] for line in journal(run) if line["event"] == "grandchild"]
    stage.wait_for(lambda: not stage.is_alive(left), seconds=3)


def test_values_that_are_no_finite_numbers_are_left_out() -> None:
    line = b'{"seq": 1, "time": 1, "step": 3, "total_steps": 9, "message": "a\\u0000b", "values": %s}'
    parsed = parse_progress(line % b'{"loss": NaN, "kl": Infinity, "ok": 0.5, "name": "x", "yes": true}')
    assert parsed is not None
    assert (parsed["values"], parsed["message"]) == ({"ok": 0.5}, "ab")


# --- faults of one run --------------------------------------------------------------------------------------


def test_a_run_whose_recipe_cannot_be_written_fails_alone(project: Project, ann: User) -> None:
    bad, good = stage.make_queued_run(project, ann), stage.make_queued_run(project, ann)
    Run.objects.filter(pk=bad.pk).update(config={**bad.config, "policies": {"a": "\ud800"}})
    one = stage.make_worker()
    assert stage.work_through(one, good).state == State.COMPLETE
    bad.refresh_from_db()
    assert (bad.state, bad.attempt, bad.worker) == (State.FAILED, 1, "")
    assert bad.message.startswith("UnicodeEncodeError: ")
    assert str(bad.folder) in bad.message and bad.message.endswith("Resume it to try again.")
    assert "Traceback" in bad.stderr_tail


def test_folders_that_cannot_be_made_are_named_and_the_worker_lives(
    project: Project, ann: User, settings: Any
) -> None:
    run = stage.make_queued_run(project, ann)
    settings.RUNS_DIR.write_text("a file where the folders of runs should be")
    one = stage.make_worker()
    stage.work_through(one, run)
    assert run.state == State.FAILED
    assert run.message == (
        f"The run folder {run.folder} cannot be used: Not a directory. Put it right and resume."
    )
    settings.RUNS_DIR.unlink()
    runs.resume(run=run, by=None)
    assert stage.work_through(one, run).state == State.COMPLETE


@pytest.mark.parametrize("what", ["evict", "start"])
def test_a_folder_that_became_read_only_fails_its_run_and_no_other(
    project: Project, ann: User, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run, one = stage.make_queued_run(project, ann), stage.make_worker()

    def refuse(self: object, folder: Path, **how: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(folder / "lock"))

    with monkeypatch.context() as patch:
        patch.setattr(LocalLauncher, what, refuse)
        stage.work_through(one, run)
    assert run.message == (
        f"The run folder {run.folder} cannot be used: Read-only file system. Put it right and resume."
    )
    runs.resume(run=run, by=None)
    assert stage.work_through(one, run).state == State.COMPLETE


def test_a_fault_while_the_child_works_ends_the_child_too(
    project: Project, ann: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)

    def refuse(self: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(run.folder / "trainer.stderr.log"))

    monkeypatch.setattr(LocalChild, "trim_logs", refuse)
    stage.work_through(one, run)
    assert run.state == State.FAILED and "Input/output error" in run.message
    assert not stage.is_alive(journal(run)[0]["pid"])


def test_a_fault_that_cannot_even_be_written_down_costs_the_run_its_worker_and_nothing_else(
    transactional_db: None, project: Project, ann: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)
    with monkeypatch.context() as patch:
        patch.setattr(LocalChild, "poll", lambda self: 1 / 0)
        patch.setattr(leases.Lease, "end", away)
        work_until(one, lambda: one.device_lane is None)
    assert not stage.is_alive(journal(run)[0]["pid"])
    lose_lease(run)
    assert stage.work_through(one, run).state == State.COMPLETE


def test_what_no_database_can_store_in_a_message_costs_nothing() -> None:
    line = b'{"seq": 1, "time": 1, "step": 3, "total_steps": 9, "message": "a\\ud800b", "values": %s}'
    parsed = parse_progress(line % b'{"\\ud800": 1}')
    assert parsed is not None
    assert (parsed["message"], parsed["values"]) == ("a?b", {"?": 1})


def test_a_run_whose_folder_vanished_begins_anew_and_tells_it(project: Project, ann: User) -> None:
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run, step=12)
    runs.cancel(run=run, by=None)
    stage.work_through(one, run)
    assert (run.checkpoint_step >= 10, run.last_seq > 10) == (True, True)
    shutil.rmtree(run.folder)
    runs.resume(run=run, by=None)
    work_until(one, lambda: 0 < Run.objects.get(pk=run.pk).step < 10)  # not silent until it passes step 12
    stage.work_through(one, run)
    assert (run.state, run.last_seq, run.checkpoint_step) == (State.COMPLETE, 21, 20)
    assert [metric.step for metric in run.metrics.all()] == list(range(1, 21))


def test_a_full_disk_is_named_at_once(
    project: Project, ann: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.use_stub(settings, "crashes")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    run = stage.work_through(stage.make_worker(), stage.make_queued_run(project, ann))
    assert (run.state, run.attempt) == (State.FAILED, 1)
    assert run.message.startswith(f"The disk is full. ({run.folder}) Free space and resume.")


@pytest.mark.parametrize(
    ("printed", "free", "is_full"),
    [
        ("OSError: [Errno 28] No space left on device", 2**40, True),  # something made room meanwhile
        ("RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0", 2**27, True),
        ("RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0", 2**40, False),
        ("Traceback: something broke", 2**27, False),
    ],
)
def test_a_full_disk_is_known_by_what_was_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, free: int, is_full: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert endings.is_disk_full(tmp_path, printed) == is_full


def test_a_check_that_does_not_end_is_stopped(
    project: Project, ann: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "CHECK_SECONDS", 1)
    stage.use_stub(settings, "slow check")
    one, run = stage.make_worker(), stage.make_run(project, ann)
    stage.work_through(one, run)
    assert run.state == State.FAILED
    assert "did not end within" in run.message and "resume" in run.message
    assert not stage.is_alive(journal(run)[0]["pid"])


# --- stopping -----------------------------------------------------------------------------------------------


def running(one: worker.TrainingWorker, run: Run, step: int = 2) -> None:
    work_until(one, lambda: any(line.get("step", 0) >= step for line in journal(run)))


def test_a_cancelled_run_is_saved_within_seconds_and_goes_on_where_it_was(
    project: Project, ann: User, mia: User
) -> None:
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)
    asked = time.monotonic()
    runs.cancel(run=run, by=mia)
    stage.work_through(one, run)
    assert time.monotonic() - asked < 5
    assert run.state == State.CANCELLED
    stopped_at = max(line["step"] for line in journal(run) if line["event"] == "save")
    runs.resume(run=run, by=mia)
    stage.work_through(one, run)
    assert (run.state, run.attempt) == (State.COMPLETE, 2)
    steps = [line["step"] for line in journal(run) if line["event"] == "step"]
    assert steps == list(range(1, 21)) and stopped_at < 20


def test_a_child_that_ignores_the_wish_is_killed(
    project: Project, ann: User, mia: User, settings: Any
) -> None:
    stage.use_stub(settings, "ignores SIGTERM")
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)
    runs.cancel(run=run, by=mia)
    stage.work_through(one, run)
    assert run.state == State.CANCELLED
    assert not stage.is_alive(journal(run)[0]["pid"])


def test_a_cancelled_check_ends_at_once(project: Project, ann: User, mia: User, settings: Any) -> None:
    stage.use_stub(settings, "slow check")
    one, run = stage.make_worker(), stage.make_run(project, ann)
    work_until(one, lambda: bool(journal(run)))
    runs.cancel(run=run, by=mia)
    work_until(one, lambda: one.check_lane is None)
    run.refresh_from_db()
    assert run.state == State.CANCELLED
    assert not stage.is_alive(journal(run)[0]["pid"])


def test_a_worker_that_stops_hands_its_run_on(project: Project, ann: User) -> None:
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)
    one.ask_stop()
    one.serve()
    run.refresh_from_db()
    assert (run.state, run.fruitless_attempts) == (State.QUEUED, 0)
    assert not Worker.objects.exists()
    stage.work_through(stage.make_worker("two"), run)
    assert (run.state, run.attempt) == (State.COMPLETE, 2)


def test_a_worker_that_is_told_twice_stops_now(
    project: Project, ann: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "GRACE_SECONDS", 60)
    stage.use_stub(settings, "ignores SIGTERM")
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)
    one.ask_stop()
    one.ask_stop()
    began = time.monotonic()
    one.serve()
    run.refresh_from_db()
    assert time.monotonic() - began < 5
    assert run.state == State.QUEUED


def test_a_batch_ends_when_nothing_is_left(project: Project, ann: User) -> None:
    first, second = stage.make_queued_run(project, ann), stage.make_run(project, ann)
    stage.make_worker().serve(batch=True)
    assert {run.state for run in Run.objects.filter(pk__in=[first.pk, second.pk])} == {State.COMPLETE}


# --- leases -------------------------------------------------------------------------------------------------


def test_of_two_claims_one_succeeds(project: Project, ann: User) -> None:
    run = stage.make_queued_run(project, ann)
    assert leases.claim_run(worker="one", device="cpu:0") == run
    assert leases.claim_run(worker="two", device="cpu:1") is None


def test_a_device_runs_one_run_at_a_time(project: Project, ann: User) -> None:
    first, second = stage.make_queued_run(project, ann), stage.make_queued_run(project, ann)
    assert leases.claim_run(worker="one", device="cuda:0") == first
    assert leases.claim_run(worker="two", device="cuda:0") is None
    assert leases.claim_run(worker="two", device="cuda:1") == second


def lose_lease(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(leased_until="2020-01-01T00:00:00Z")


def test_a_worker_that_lost_its_lease_kills_its_child_and_writes_nothing(project: Project, ann: User) -> None:
    one, run = stage.make_worker("one"), stage.make_queued_run(project, ann)
    running(one, run)
    lose_lease(run)
    taken = leases.claim_run(worker="two", device="cpu:1")
    assert taken is not None and taken.attempt == 2
    before = Run.objects.values().get(pk=run.pk)
    work_until(one, lambda: one.device_lane is None)
    assert Run.objects.values().get(pk=run.pk) == before
    assert not stage.is_alive(journal(run)[0]["pid"])


def away(*args: object, **kwargs: object) -> None:
    raise OperationalError("the database is away")


def turn_for(one: worker.TrainingWorker, seconds: float) -> None:
    end = time.monotonic() + seconds
    work_until(one, lambda: time.monotonic() > end)


# Transactional: the worker closes a connection that failed, and a test's own transaction with it.
@pytest.mark.parametrize("what", [leases.Lease, Worker.objects])
def test_a_worker_that_could_not_renew_in_time_stops_by_its_own_clock(
    transactional_db: None,
    project: Project,
    ann: User,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    what: Any,
) -> None:
    settings.RUN_LEASE_SECONDS = 2
    stage.use_stub(settings, "is slow")
    monkeypatch.setattr(supervision, "others_may_claim_meanwhile", lambda: True)  # as PostgreSQL would
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(what, "rows" if what is leases.Lease else "update_or_create", away)
        if what is leases.Lease:
            work_until(one, lambda: one.device_lane is None)
        else:  # it does not come as far as its lanes
            turn_for(one, 3)
        assert not stage.is_alive(journal(run)[0]["pid"])
    assert stage.work_through(one, run).state == State.COMPLETE


def test_a_lease_that_runs_out_while_a_call_to_the_database_hangs_ends_the_child(
    project: Project, ann: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "others_may_claim_meanwhile", lambda: True)
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)
    settings.RUN_LEASE_SECONDS = 1
    threading.Thread(target=one._watch, daemon=True).start()  # and nobody turns the worker meanwhile
    stage.wait_for(lambda: not stage.is_alive(journal(run)[0]["pid"]), seconds=1.5)
    one._has_left.set()


def test_a_busy_sqlite_database_does_not_take_the_training_away(
    transactional_db: None, project: Project, ann: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.RUN_LEASE_SECONDS = 2
    stage.use_stub(settings, "is slow")
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(leases.Lease, "rows", away)
        turn_for(one, 4)
    stage.work_through(one, run)
    assert (run.state, run.attempt) == (State.COMPLETE, 1)
    assert len({line["pid"] for line in journal(run)}) == 1


def test_who_could_not_write_does_not_blame_others_for_a_lease_that_ran_out(
    project: Project, ann: User, settings: Any
) -> None:
    settings.RUN_LEASE_SECONDS = 2
    run = stage.make_queued_run(project, ann)
    leases.claim_run(worker="other", device="cpu:1")
    two = stage.make_worker("two")
    two.turn()
    two._unseen_since = time.monotonic() - 3  # as if the database had been locked for so long
    two._seen -= 3
    lose_lease(run)
    two.turn()
    assert two.device_lane is None
    work_until(two, lambda: two.device_lane is not None, seconds=3)


def test_the_second_worker_ends_the_child_of_a_worker_that_froze(project: Project, ann: User) -> None:
    frozen, run = stage.make_worker("frozen"), stage.make_queued_run(project, ann)
    running(frozen, run, step=6)
    old_child = journal(run)[0]["pid"]
    lose_lease(run)  # the frozen worker is not turned any more; its child works on
    assert stage.is_alive(old_child)
    stage.work_through(stage.make_worker("two", "cpu:1"), run)
    assert (run.state, run.attempt) == (State.COMPLETE, 2)
    assert not stage.is_alive(old_child)
    lines = journal(run)
    switch = next(n for n, line in enumerate(lines) if line["pid"] != old_child)
    assert old_child not in {line["pid"] for line in lines[switch:]}
    work_until(frozen, lambda: frozen.device_lane is None)
    run.refresh_from_db()
    assert run.state == State.COMPLETE


def test_a_process_that_is_no_child_of_ours_is_left_alone(project: Project, ann: User) -> None:
    run = stage.make_queued_run(project, ann)
    claimed = leases.claim_run(worker="gone", device="cpu:1")
    assert claimed is not None
    from training.run_folders import write_run_folder

    with write_run_folder(run).locked():  # this very test process
        lose_lease(run)
        one = stage.make_worker()
        work_until(one, lambda: "Waiting for process" in Run.objects.get(pk=run.pk).message)
        assert one.device_lane is not None and one.device_lane.child is None
    assert stage.work_through(one, run).state == State.COMPLETE


def test_a_complete_folder_is_brought_home_without_training_again(project: Project, ann: User) -> None:
    one, run = stage.make_worker("one"), stage.make_queued_run(project, ann)
    work_until(one, lambda: (run.folder / "model").exists())
    stage.wait_for(lambda: (run.folder / "result.json").exists())
    lose_lease(run)  # the worker died between the end of its child and the import
    stage.work_through(stage.make_worker("two", "cpu:1"), run)
    assert (run.state, run.attempt) == (State.COMPLETE, 2)
    assert sum(line["event"] == "start" for line in journal(run)) == 1


def test_a_preflight_whose_worker_is_gone_is_taken_over(project: Project, ann: User) -> None:
    run = stage.make_run(project, ann, start_when_ready=False)
    assert leases.claim_check(worker="gone") == run
    assert leases.claim_check(worker="two") is None
    lose_lease(run)
    assert stage.work_through(stage.make_worker("two"), run).state == State.READY


def test_a_worker_is_seen_while_it_works(db: None) -> None:
    stage.make_worker("one").turn()
    assert [row.name for row in runs.workers_alive()] == ["one"]
    assert Worker.objects.filter(seen_at__lte=Now()).exists()


def test_two_workers_of_one_name_are_two_and_one_that_leaves_takes_its_own_row_along(db: None) -> None:
    one, two = stage.make_worker("same"), stage.make_worker("same")
    one.turn()
    two.turn()
    assert [row.name for row in runs.workers_alive()] == ["same", "same 2"]
    two.serve(batch=True)
    assert [row.name for row in runs.workers_alive()] == ["same"]


def test_the_name_of_a_worker_that_is_gone_is_free_again(db: None) -> None:
    Worker.objects.create(name="same", device="cpu:0", seen_at="2020-01-01T00:00:00Z")
    stage.make_worker("same").turn()
    assert [row.name for row in Worker.objects.all()] == ["same"]


def test_a_worker_whose_name_was_taken_while_it_was_frozen_takes_another(db: None) -> None:
    one, two = stage.make_worker("same"), stage.make_worker("same")
    one.turn()
    Worker.objects.update(seen_at="2020-01-01T00:00:00Z")
    one._seen -= 60
    two.turn()
    one.turn()
    assert (one.name, two.name) == ("same 2", "same")


def test_a_worker_that_cannot_print_works_on(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *how: None)  # Ctrl-C stays the test runner's

    def refuse(text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    full = io.StringIO()
    full.write = refuse  # type: ignore[method-assign, assignment]
    call_command("train_worker", batch=True, device="cpu:0", stdout=full)


def test_a_worker_that_is_told_twice_leaves_although_the_database_is_away(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage.make_worker()
    monkeypatch.setattr(Worker.objects, "get_or_create", away)
    monkeypatch.setattr(Worker.objects, "update_or_create", away)
    one.ask_stop()
    one.ask_stop()
    one.serve()


def test_a_stop_signal_to_the_child_alone_puts_the_run_back(project: Project, ann: User) -> None:
    one, run = stage.make_worker(), stage.make_queued_run(project, ann)
    running(one, run)
    os.kill(journal(run)[0]["pid"], signal.SIGTERM)
    stage.work_through(one, run)
    assert (run.state, run.attempt) == (State.COMPLETE, 2)
