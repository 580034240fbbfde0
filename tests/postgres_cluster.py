"""A throw-away PostgreSQL cluster from the programs that Debian's package installs.

    with postgres_cluster() as cluster:
        url = cluster.create_database("ratchet")

It lives in a temporary folder, listens on a free port of the loopback address with a password of its own, and
is stopped by its process id. PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

USER = "ratchet"
START_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Cluster:
    port: int
    password: str
    pid: int

    def url(self, name: str) -> str:
        """For RATCHET_DATABASE and for psycopg alike."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def create_database(self, name: str) -> str:
        """Make an empty database and return its address."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)


def programs() -> Path | None:
    """The folder with `initdb` and `postgres`, the newest version first; None when they are missing."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("initdb")
    folders = [*debian, Path(on_path).resolve().parent] if on_path else debian
    return next((f for f in folders if all((f / name).exists() for name in ("initdb", "postgres"))), None)


def missing() -> str | None:
    """Why no cluster can be started here, in words for a skipped test; None when one can."""
    if programs() is None:
        return "no PostgreSQL: neither /usr/lib/postgresql/*/bin nor PATH has initdb (apt install postgresql)"
    if os.geteuid() == 0 and _account() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it"
    return None


@contextmanager
def postgres_cluster(*, durable: bool = True) -> Iterator[Cluster]:
    """Start a cluster and stop it in the end. Not durable: no fsync, for tests that only need the logic."""
    bin_dir, reason = programs(), missing()
    if bin_dir is None or reason:
        raise RuntimeError(reason)
    account = _account() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="ratchet-postgres-"))
    try:
        password = secrets.token_hex(16)
        _initialise(bin_dir, folder, password, account)
        port = free_port()
        server = _start(bin_dir, folder, port, account, durable=durable)
        try:
            cluster = Cluster(port=port, password=password, pid=server.pid)
            _wait_until_it_answers(cluster, server, folder / "log")
            yield cluster
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown: open connections are ended
            try:
                server.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _initialise(bin_dir: Path, folder: Path, password: str, account: pwd.struct_passwd | None) -> None:
    password_file = folder / "password"
    password_file.write_text(password)
    password_file.chmod(0o600)
    if account is not None:
        for path in (folder, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
    subprocess.run(
        [
            *(bin_dir / "initdb", "--pgdata", folder / "data", "--username", USER, "--encoding", "UTF8"),
            *("--locale", "C", "--auth", "scram-sha-256", "--pwfile", password_file, "--no-sync"),
        ],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        **_as_account(account),
    )


def _start(
    bin_dir: Path, folder: Path, port: int, account: pwd.struct_passwd | None, *, durable: bool
) -> subprocess.Popen[bytes]:
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": folder,
        "max_connections": 100,
        "fsync": "on" if durable else "off",
        "synchronous_commit": "on" if durable else "off",
    }
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(
            [
                *(bin_dir / "postgres", "-D", folder / "data"),
                *(word for key, value in options.items() for word in ("-c", f"{key}={value}")),
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is for the tests
            **_as_account(account),
        )


def _wait_until_it_answers(cluster: Cluster, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(cluster.url("postgres"), connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}") from error
            time.sleep(0.05)


def _account() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _as_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0
