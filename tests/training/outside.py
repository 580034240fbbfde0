"""A database in a file or a cluster that worker processes share with the test, and those processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.core.management import call_command
from django.db import connections
from django.db.utils import ConnectionHandler
from pytest_django import DjangoDbBlocker

from rlhf_site.settings import database
from tests.real_server import ROOT, environment

STOP_SECONDS = 40


@contextmanager
def outside_database(url: str, blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let the ORM of this process work on the database at `url`, as every process of an installation does."""
    usual = connections["default"]
    with blocker.unblock():
        connections["default"] = ConnectionHandler({"default": database(url)})["default"]
        try:
            call_command("migrate", verbosity=0)
            yield
        finally:
            connections["default"].close()
            connections["default"] = usual


class Workers:
    """Real worker processes, each with its children in the environment of an installation."""

    def __init__(self, *, url: str, var: Path, behaviour: str = "works", lease: int = 4, **more: str) -> None:
        self.logs = var
        self._env = environment(
            database=url,
            var=var,
            RATCHET_RUN_LEASE_SECONDS=str(lease),
            DJANGO_SETTINGS_MODULE="tests.training.stub_settings",
            STUB_BEHAVIOUR=behaviour,
            **more,
        )
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        with open(self.logs / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "train_worker", "--name", name, "--device", "cpu:0", *options],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started[name] = process
        return process

    def __getitem__(self, name: str) -> subprocess.Popen[bytes]:
        return self._started[name]

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()

    def stop_all(self) -> None:
        for process in self._started.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
                process.kill()
                process.wait()
