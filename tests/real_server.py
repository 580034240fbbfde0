"""The real web server as operators run it: uvicorn processes of their own, on a free port, with a database.

    env = environment(database=url, var=tmp_path)
    prepare(env)
    with real_server(env) as server:
        http.client.HTTPConnection("127.0.0.1", server.port)

Used where threads of one process would prove too little: tests of many raters at once, and benchmarks.
"""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.postgres_cluster import free_port

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60
STOP_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class RealServer:
    port: int
    pid: int  # leader of a process group of its own
    start_seconds: float
    log: Path

    def rss_mb(self) -> list[float]:
        """Memory in use by each Python process that answers requests, largest first."""
        sizes = [_rss_mb(pid) for pid in _group(self.pid) if "resource_tracker" not in _command(pid)]
        return sorted(sizes, reverse=True)

    def cpu_seconds(self) -> float:
        """Processor time of the whole group so far: it tells cost apart from a busy machine."""
        return sum(_cpu_seconds(pid) for pid in _group(self.pid))


def environment(*, database: str, var: Path, **more: str) -> dict[str, str]:
    """What the server, and commands before it, run with: nothing of an installation on this machine."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RATCHET_")}
    return {
        **inherited,
        "RATCHET_DATABASE": database,
        "RATCHET_VAR": str(var),
        "RATCHET_SECRET_KEY": "only-for-tests-" + "x" * 50,
        "DJANGO_SETTINGS_MODULE": "rlhf_site.settings",
        **more,
    }


def prepare(env: dict[str, str]) -> None:
    """Make the tables and gather the static files."""
    for command in (["migrate", "--verbosity", "0"], ["collectstatic", "--noinput", "--verbosity", "0"]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=ROOT, env=env, check=True, timeout=300)


@contextmanager
def real_server(env: dict[str, str], *, processes: int = 1) -> Iterator[RealServer]:
    """Start uvicorn, wait until it answers, and stop its whole process group in the end."""
    port, log = free_port(), Path(env["RATCHET_VAR"]) / "server.log"
    command = [sys.executable, "-m", "uvicorn", "rlhf_site.asgi:application", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "warning", "--no-access-log", "--no-server-header"]
    if processes > 1:
        command += ["--workers", str(processes)]
    started = time.monotonic()
    with open(log, "wb") as output:
        leader = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_it_answers(port, leader, log)
        yield RealServer(port=port, pid=leader.pid, start_seconds=time.monotonic() - started, log=log)
    finally:
        _stop(leader)


def _wait_until_it_answers(port: int, leader: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        try:
            connection.request("GET", "/login/")
            status = connection.getresponse().status
            if status != 200:
                raise RuntimeError(f"/login/ answered {status}:\n{log.read_text()[-3000:]}")
            return
        except OSError as error:
            if leader.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}") from error
            time.sleep(0.02)
        finally:
            connection.close()


def _stop(leader: subprocess.Popen[bytes]) -> None:
    leader.terminate()
    with suppress(subprocess.TimeoutExpired):
        leader.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)  # whoever is left of the group that we started
    leader.wait()


def _group(leader: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader:
                members.append(int(entry.name))
    return members


def _rss_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
