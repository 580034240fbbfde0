"""The two processes of an installation, web server and training worker, started and stopped together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from django.conf import settings

STOP_SECONDS = 45  # a run under way saves a checkpoint first
PR_SET_PDEATHSIG = 1


class ProcessDied(Exception):
    """A process of ours ended by itself; the message names it and the end of what it printed."""


def free_port(host: str, wanted: int) -> int:
    """Return `wanted`, or the next port above it that nothing listens on."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) != 0:
                return port
    raise OSError(f"no free port from {wanted} to {wanted + 99} on {host}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    """Web server and worker as children. They leave the terminal's group: Ctrl-C reaches this process
    alone, which then stops them in order."""

    def __init__(self, *, host: str, port: int, log_dir: Path) -> None:
        self.host = host
        self.port = free_port(host, port)
        self.log_dir = log_dir
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start both and return when the web server answers. Raises ProcessDied when one does not come up."""
        serve = ["-m", "uvicorn", "rlhf_site.asgi:application", "--host", self.host, "--port", str(self.port)]
        # Two answer what a few raters ask; other cores are the trainer's.
        serve += ["--workers", str(min(2, os.cpu_count() or 1))]
        self._spawn("web", [*serve, "--log-level", "warning", "--no-server-header"])
        self._spawn("worker", [str(settings.BASE_DIR / "manage.py"), "train_worker"])
        self._wait_until(self._answers, seconds=60)

    def stop(self) -> None:
        """Stop the worker first, so that the web server can still show a run that saves its checkpoint."""
        for name in ("worker", "web"):
            child = self._children.pop(name, None)
            if child is None or child.poll() is not None:
                continue
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def check(self) -> None:
        """Raise ProcessDied when one of the two has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                log = self.log_dir / f"{name}.log"
                tail = log.read_text(errors="replace")[-2000:]
                raise ProcessDied(
                    f"the {name} process ended with status {child.returncode}; {log} ends:\n{tail}"
                )

    def _spawn(self, name: str, arguments: list[str]) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with open(self.log_dir / f"{name}.log", "ab") as log:
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
