"""`make demo` as a person meets it: real processes that are started twice, killed, and stopped."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labeling.models import Project, Round
from rlhf_site.demo.news import News
from rlhf_site.demo.processes import ProcessDied, Processes, RunsAlready, only_here
from tests.labeling.judged import make_round
from tests.real_server import ROOT, environment
from tests.training.stage import is_alive, make_sampled_round, wait_for
from training import runs
from training.models import Run

SECONDS = 120.0


class Demo:
    """`manage.py demo` started by a script in the background: with Ctrl-C switched off."""

    def __init__(self, var: Path) -> None:
        self.var, self.log = var, var / "console"
        self.env = environment(
            database=f"sqlite:///{var / 'db.sqlite3'}",
            var=var,
            DJANGO_SETTINGS_MODULE="tests.training.stub_settings",
            STUB_BEHAVIOUR="works",
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        return [sys.executable, "manage.py", "demo", "--port", "8770"]

    def start(self) -> subprocess.Popen[bytes]:
        with open(self.log, "wb") as console:
            started = self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )
        wait_for(lambda: "Ratchet is at" in self.said or started.poll() is not None, SECONDS)
        assert started.poll() is None, self.said
        return started

    @property
    def said(self) -> str:
        return self.log.read_text()

    def pids(self, command: str) -> list[int]:
        """Processes of this installation with these words in their command line."""
        return [int(found.name) for found in Path("/proc").glob("[0-9]*") if self._is_ours(found, command)]

    def _is_ours(self, process: Path, command: str) -> bool:
        try:
            ours = f"RATCHET_VAR={self.var}\0".encode() in (process / "environ").read_bytes()
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            return False
        return ours and command in words and is_alive(int(process.name))


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.terminate()
        made.process.wait(60)


@pytest.mark.slow
def test_the_demo_runs_once_outlives_its_worker_and_leaves_nothing_behind(demo: Demo) -> None:
    first = demo.start()
    address = re.findall(r"Ratchet is at (http://\S+)", demo.said)[0]
    again = subprocess.run(demo.command, cwd=ROOT, env=demo.env, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1
    assert f"Ratchet is already running here at {address}" in again.stderr

    (worker,) = demo.pids("train_worker")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: "The worker is started again." in demo.said)
    wait_for(lambda: demo.pids("train_worker") not in ([], [worker]))
    wait_for(lambda: "Kind stories: Round 1 is open" in demo.said, SECONDS)

    first.send_signal(signal.SIGINT)  # heard although the shell had switched it off
    assert first.wait(60) == 0
    assert "stopped." in demo.said and demo.pids("") == []

    second = demo.start()
    assert "Forgotten a password? .venv/bin/python manage.py changepassword ann" in demo.said
    leader = min(demo.pids("uvicorn"))
    os.kill(leader, signal.SIGKILL)
    assert second.wait(60) == 1
    assert "the web process ended with status -9" in demo.said
    wait_for(lambda: demo.pids("") == [])


def test_an_installation_is_held_by_one_and_tells_others_where(tmp_path: Path) -> None:
    with only_here(tmp_path) as write_address:
        with pytest.raises(RunsAlready, match="just starting"), only_here(tmp_path):
            pass
        write_address("http://127.0.0.1:8000")
        with pytest.raises(RunsAlready, match=r"at http://127\.0\.0\.1:8000"), only_here(tmp_path):
            pass
    with only_here(tmp_path):
        pass


def test_a_worker_that_dies_at_once_is_not_started_again_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    (tmp_path / "worker.log").write_text("a fault of yesterday\n")
    processes = Processes(host="127.0.0.1", port=8790, log_dir=tmp_path, say=told.append)
    dies = ["-c", "import sys; print('a fault of today'); sys.exit(7)"]
    monkeypatch.setattr(processes, "_spawn_worker", lambda: processes._spawn("worker", dies))
    processes._spawn_worker()

    def has_given_up() -> str:
        try:
            processes.check()
        except ProcessDied as died:
            return str(died)
        return ""

    said = wait_for(has_given_up)
    assert len(told) == 3 and all("started again" in line for line in told)
    assert "the worker process ended with status 7" in said and "a fault of today" in said
    assert "yesterday" not in said


def test_stopping_ends_what_a_process_left_behind(tmp_path: Path) -> None:
    processes = Processes(host="127.0.0.1", port=8790, log_dir=tmp_path)
    leaves = "import os, sys, time; print(os.fork() or time.sleep(60), flush=True)"
    processes._spawn("web", ["-c", leaves])
    left = int(wait_for(lambda: (tmp_path / "web.log").read_text()))
    assert is_alive(left)
    processes.stop()
    wait_for(lambda: not is_alive(left), 3)


def test_the_console_tells_of_every_project_what_is_new(project: Project, ann: Any) -> None:
    old = runs.queue_sampling(make_sampled_round(project))
    Run.objects.filter(pk=old.pk).update(state=Run.State.FAILED)
    news = News()
    assert news.since_last_time() == []
    run = runs.queue_sampling(make_sampled_round(project))
    assert news.since_last_time() == [f"Stories: {run}: queued, Waiting for a worker."]
    made = make_round(project, state=Round.State.OPEN)
    assert news.since_last_time() == [f"Stories: {made} is open, raters can judge"]
    assert news.since_last_time() == []
