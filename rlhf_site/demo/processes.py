"""The two processes of an installation, web server and training worker, started and stopped together.

`only_here` keeps a second pair out of the same installation. A worker that dies is started again; without
the web server there is nothing to show, so its end ends both.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from django.conf import settings

log = logging.getLogger(__name__)

STOP_SECONDS = 45  # a run under way saves a checkpoint first
RESTARTS = 3  # of the worker, in RESTART_SECONDS
RESTART_SECONDS = 60
TAIL = 2000
PR_SET_PDEATHSIG = 1


class ProcessDied(Exception):
    """A process of ours ended by itself; the message names it and the end of what it printed."""


class RunsAlready(Exception):
    """This installation has its processes already; the message says where."""


@contextlib.contextmanager
def only_here(var: Path) -> Iterator[Callable[[str], None]]:
    """Hold the installation. Yields what writes down its address, for whoever starts it a second time.

    Raises RunsAlready. The lock ends with this process, however it ends.
    """
    var.mkdir(parents=True, exist_ok=True)
    with open(var / "demo.lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            where = file.read().strip()
            raise RunsAlready(
                f"Ratchet is already running here at {where}" if where else "Ratchet is just starting here."
            ) from None
        file.truncate(0)

        def write_address(address: str) -> None:
            file.truncate(0)
            file.write(address)
            file.flush()

        yield write_address
        file.truncate(0)


def free_port(host: str, wanted: int) -> int:
    """Return `wanted`, or the next port above it that nothing listens on."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) != 0:
                return port
    raise OSError(f"no free port from {wanted} to {wanted + 99} on {host}")


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End it with all that it started, which may be alive although it is not (uvicorn's own children)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    """Web server and worker as children. They leave the terminal's group: Ctrl-C reaches this process
    alone, which then stops them in order."""

    def __init__(
        self, *, host: str, port: int, log_dir: Path, say: Callable[[str], None] = log.warning
    ) -> None:
        self.host = host
        self.port = free_port(host, port)
        self.log_dir = log_dir
        self._say = say
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._logs_began: dict[str, int] = {}  # what earlier starts printed stands before
        self._restarts: list[float] = []

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start both and return when the web server answers. Raises ProcessDied when one does not come up."""
        serve = ["-m", "uvicorn", "rlhf_site.asgi:application", "--host", self.host, "--port", str(self.port)]
        # Two answer what a few raters ask; other cores are the trainer's.
        serve += ["--workers", str(min(2, os.cpu_count() or 1))]
        self._spawn("web", [*serve, "--log-level", "warning", "--no-server-header"])
        self._spawn_worker()
        self._wait_until(self._answers, seconds=60)

    def stop(self) -> None:
        """Stop the worker first, so that the web server can still show a run that saves its checkpoint."""
        for name in ("worker", "web"):
            child = self._children.pop(name, None)
            if child is None:
                continue
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_SECONDS)
            _end_group(child)

    def check(self) -> None:
        """Start a worker that has ended again; raise ProcessDied when that does not help, or the web has."""
        for name, child in list(self._children.items()):
            if child.poll() is None:
                continue
            _end_group(child)
            if name != "worker" or not self._may_restart():
                raise ProcessDied(f"the {self._how_it_ended(name, child)}")
            self._say(f"The {self._how_it_ended(name, child)}\nThe worker is started again.")
            self._spawn_worker()

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_SECONDS]
        self._restarts.append(now)
        return len(self._restarts) <= RESTARTS

    def _how_it_ended(self, name: str, child: subprocess.Popen[bytes]) -> str:
        log = self.log_dir / f"{name}.log"
        with open(log, "rb") as file:
            file.seek(max(self._logs_began[name], log.stat().st_size - TAIL))
            tail = file.read().decode(errors="replace").strip()
        ends = f"{log} ends:\n{tail}" if tail else f"{log} says nothing about it"
        return f"{name} process ended with status {child.returncode}; {ends}"

    def _spawn_worker(self) -> None:
        self._spawn("worker", [str(settings.BASE_DIR / "manage.py"), "train_worker"])

    def _spawn(self, name: str, arguments: list[str]) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with open(self.log_dir / f"{name}.log", "ab") as log:
            self._logs_began[name] = os.fstat(log.fileno()).st_size
            self._children[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=settings.BASE_DIR,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def _wait_until(self, holds: Callable[[], bool], *, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not holds():
            self.check()
            if time.monotonic() > end:
                raise ProcessDied(f"the web server did not answer on {self.address} within {seconds:.0f} s")
            time.sleep(0.1)
