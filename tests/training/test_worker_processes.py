"""Real worker processes on a real database: killed, frozen, stopped; one run, one child, nothing lost."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from pytest_django import DjangoDbBlocker

from labeling.models import Membership
from tests import factories
from tests.postgres_cluster import Cluster, missing, postgres_cluster
from tests.training import stage
from tests.training.outside import Workers, outside_database
from tests.training.stage import is_alive, journal, wait_for
from training import runs
from training.leases import Lease
from training.models import Run

pytestmark = pytest.mark.slow

LEASE = 4
HOLD = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
database.execute("BEGIN IMMEDIATE")
time.sleep(float(sys.argv[2]))
database.execute("COMMIT")
"""
State = Run.State


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        (pytest.fail if os.environ.get("RATCHET_REQUIRE_ALL_TESTS") else pytest.skip)(reason)
    with postgres_cluster(durable=False) as started:
        yield started


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """An installation's database, empty but for its tables."""
    if request.param == "postgres":
        found = request.getfixturevalue("cluster").create_database(f"workers_{uuid.uuid4().hex}")
    else:
        found = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    with outside_database(found, django_db_blocker):
        yield found


@pytest.fixture
def sqlite_url(tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    with outside_database(f"sqlite:///{tmp_path / 'db.sqlite3'}", django_db_blocker):
        yield f"sqlite:///{tmp_path / 'db.sqlite3'}"


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Any]:
    """Makes the workers of a test, and stops them all."""
    made: list[Workers] = []

    def make(url: str, behaviour: str = "works") -> Workers:
        made.append(Workers(url=url, var=tmp_path, behaviour=behaviour, lease=LEASE))
        return made[-1]

    yield make
    for each in made:
        each.stop_all()


def make_queued_run() -> Run:
    project = factories.make_project()
    return stage.make_queued_run(project, factories.make_user("ann", project, Membership.Role.RATER))


def two_workers_and_a_run(crew: Workers) -> tuple[Run, str, str]:
    """A run that one of two workers holds: the run, the holder's name, the other's."""
    crew.start("first")
    crew.start("second")
    wait_for(lambda: len(runs.workers_alive()) == 2)
    run = make_queued_run()
    worker = str(wait_for(lambda: Run.objects.get(pk=run.pk).worker))
    holder = worker.partition(" ")[0]
    return run, holder, {"first": "second", "second": "first"}[holder]


def steps(run: Run) -> list[int]:
    return [line["step"] for line in journal(run) if line["event"] == "step"]


def child_of(run: Run, *, at_step: int) -> int:
    """The process that works on the run, once it has come to a step."""
    wait_for(lambda: max(steps(run), default=0) >= at_step)
    return int(journal(run)[-1]["pid"])


def ended(run: Run, state: str = State.COMPLETE) -> Run:
    def is_so() -> bool:
        run.refresh_from_db()
        assert run.state not in (State.FAILED, State.REFUSED), run.message
        return run.state == state

    wait_for(is_so)
    return run


def assert_one_child_at_a_time(run: Run) -> None:
    """Once another process has written, the one before it never writes again."""
    pids = [line["pid"] for line in journal(run)]
    changes = [pid for n, pid in enumerate(pids) if n == 0 or pids[n - 1] != pid]
    assert len(changes) == len(set(changes)), pids


def test_a_killed_worker_leaves_no_child_and_another_goes_on_from_the_checkpoint(
    url: str, workers: Any
) -> None:
    crew = workers(url, "waits once at step 7")
    run, holder, other = two_workers_and_a_run(crew)
    child = child_of(run, at_step=7)
    killed = time.monotonic()
    crew[holder].kill()
    crew[holder].wait()
    wait_for(lambda: not is_alive(child), seconds=1)
    done = wait_for(lambda: [line for line in journal(run) if line["event"] == "start"][1:])
    assert time.monotonic() - killed < LEASE + 3
    assert done[0]["pid"] != child
    ended(run)
    assert (run.attempt, run.metrics.filter(step=20).count()) == (2, 1)
    assert steps(run)[-15:] == list(range(6, 21))
    assert_one_child_at_a_time(run)
    assert crew[other].poll() is None


def test_a_frozen_worker_is_taken_for_dead_and_does_no_harm_when_it_wakes(url: str, workers: Any) -> None:
    crew = workers(url, "is slow")
    run, holder, _ = two_workers_and_a_run(crew)
    child = child_of(run, at_step=2)
    os.kill(crew[holder].pid, signal.SIGSTOP)  # its child does not notice, and works on
    wait_for(lambda: not is_alive(child), seconds=LEASE + 4)
    wait_for(lambda: journal(run)[-1]["pid"] != child)
    os.kill(crew[holder].pid, signal.SIGCONT)
    wait_for(lambda: "given up" in crew.log(holder))
    ended(run)
    assert run.attempt == 2
    assert_one_child_at_a_time(run)
    assert crew[holder].poll() is None


@pytest.mark.postgres
def test_a_worker_that_freezes_within_a_write_keeps_nobody_from_its_run(
    cluster: Cluster,
    workers: Any,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    django_db_blocker: DjangoDbBlocker,
) -> None:
    monkeypatch.setattr("rlhf_site.settings.RUN_LEASE_SECONDS", LEASE)
    settings.RUN_LEASE_SECONDS = LEASE
    url = cluster.create_database(f"workers_{uuid.uuid4().hex}")
    with outside_database(url, django_db_blocker):
        run, crew, frozen = make_queued_run(), workers(url), stage.make_worker("frozen")
        renew = Lease.renew

        def freeze(lease: Lease, **values: Any) -> None:
            renew(lease, **values)
            if connection.in_atomic_block:
                crew.start("other")
                wait_for(lambda: f"run {run.pk}" in crew.log("other").lower())

        monkeypatch.setattr(Lease, "renew", freeze)
        stage.use_stub(settings, "is slow")
        frozen.serve(batch=True)
        ended(run)
        assert (run.attempt, run.worker) == (2, "")
        assert_one_child_at_a_time(run)


def test_a_long_write_of_somebody_else_takes_no_training_away(
    sqlite_url: str, workers: Any, tmp_path: Path
) -> None:
    crew = workers(sqlite_url, "is slow")
    run, _, _ = two_workers_and_a_run(crew)
    child = child_of(run, at_step=1)
    importing = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "db.sqlite3"), str(2 * LEASE)])
    assert importing.wait(60) == 0
    ended(run)
    assert (run.attempt, {line["pid"] for line in journal(run)}) == (1, {child})


def test_a_child_that_is_killed_is_started_again(sqlite_url: str, workers: Any) -> None:
    run, crew = make_queued_run(), workers(sqlite_url, "waits once at step 7")
    crew.start("only")
    os.kill(child_of(run, at_step=7), signal.SIGKILL)
    ended(run)
    assert (run.attempt, steps(run)[-15:]) == (2, list(range(6, 21)))


def test_a_worker_that_is_told_to_stop_saves_and_the_next_one_goes_on(sqlite_url: str, workers: Any) -> None:
    run, crew = make_queued_run(), workers(sqlite_url)
    first = crew.start("first")
    child_of(run, at_step=3)
    first.send_signal(signal.SIGINT)
    assert first.wait(10) == 0
    run.refresh_from_db()
    assert (run.state, run.fruitless_attempts, runs.workers_alive()) == (State.QUEUED, 0, [])
    second = crew.start("second", "--batch")
    assert second.wait(30) == 0
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.COMPLETE, 2)
    assert steps(run) == list(range(1, 21))


def test_a_second_signal_stops_a_worker_whose_child_does_not_obey(sqlite_url: str, workers: Any) -> None:
    run, crew = make_queued_run(), workers(sqlite_url, "ignores SIGTERM")
    worker = crew.start("only")
    child = child_of(run, at_step=1)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(5) == 0
    assert not is_alive(child)
    run.refresh_from_db()
    assert run.state == State.QUEUED


def test_a_cancelled_run_is_saved_and_stopped_within_five_seconds(sqlite_url: str, workers: Any) -> None:
    run, crew = make_queued_run(), workers(sqlite_url)
    crew.start("only")
    child = child_of(run, at_step=2)
    asked = time.monotonic()
    runs.cancel(run=run, by=None)
    ended(run, State.CANCELLED)
    assert time.monotonic() - asked < 5
    assert not is_alive(child)
    runs.resume(run=run, by=None)
    ended(run)
    assert steps(run) == list(range(1, 21))


def test_many_workers_share_a_queue_without_doing_anything_twice(sqlite_url: str, workers: Any) -> None:
    first = make_queued_run()
    crew = workers(sqlite_url)
    rater = User.objects.get(username="ann")
    queue = [first, *(stage.make_queued_run(first.project, rater) for _ in range(2))]
    for number in range(3):  # of one device: one of them works at a time
        crew.start(f"worker {number}")
    for run in queue:
        ended(run)
        assert (run.attempt, steps(run)) == (1, list(range(1, 21)))
    spans = sorted((journal(run)[0]["time"], journal(run)[-1]["time"]) for run in queue)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_the_child_of_a_real_worker_is_given_no_secrets(sqlite_url: str, workers: Any) -> None:
    run, crew = make_queued_run(), workers(sqlite_url)
    crew.start("only")
    child_of(run, at_step=1)
    given = set(journal(run)[0]["environment"])
    assert "RATCHET_PARENT_PID" in given
    assert not {name for name in given if "SECRET" in name or "DATABASE" in name or "DJANGO" in name}
