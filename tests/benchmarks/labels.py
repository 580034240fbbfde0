"""How many labels a second the real server takes, over HTTP through the raters' own pages.

    python -m tests.benchmarks.labels --store sqlite|postgres --raters 32 --tasks 5000 --seconds 30

Builds a project in a throw-away database, starts the real server, and lets raters judge in a closed loop
without thinking time: a save returns the next task, and that is one cycle. Raters, server and database share
this machine. Prints as its last line one JSON object.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.http_rater import HttpRater, Shown
from tests.postgres_cluster import postgres_cluster
from tests.real_server import RealServer, environment, prepare, real_server

STORES = ("sqlite", "postgres")
STORY = (
    "Once upon a time a fox found a lantern at the edge of the wood. It was cold, and an owl had lost its "
    "way. The fox lit the lantern and walked in front, and they shared a warm bun at the old mill. The end."
)


@dataclass
class Measured:
    """What one rater saw."""

    cycles: list[float] = field(default_factory=list)  # seconds
    finished: float = 0.0  # when the last cycle ended
    errors: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description="Labels a second through the real pages.")
    parser.add_argument("--store", choices=STORES, required=True)
    parser.add_argument("--raters", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=2, help="web processes: one for each core")
    options = parser.parse_args()
    with ExitStack() as stack:
        var = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-benchmark-")))
        env = environment(database=stack.enter_context(_database(options.store, var)), var=var)
        say(f"{options.store}: making the tables")
        prepare(env)
        os.environ.update(env)
        round_id, cookies = build(raters=options.raters, tasks=options.tasks)
        with real_server(env, processes=options.processes) as server:
            say(f"server answers after {server.start_seconds:.1f} s; {options.raters} raters begin")
            result = run(server, round_id=round_id, cookies=cookies, seconds=options.seconds)
            result["server_rss_mb"] = round(sum(server.rss_mb()), 1)
        result |= count(round_id)
    store = {"store": options.store, "raters": options.raters, "tasks": options.tasks}
    print(
        json.dumps(
            store | {"processes": options.processes, "start_s": round(server.start_seconds, 2)} | result
        )
    )
    return 1 if result["errors"] or result["too_many"] or result["acknowledged"] != result["stored"] else 0


def run(
    server: RealServer, *, round_id: int, cookies: list[dict[str, str]], seconds: float
) -> dict[str, Any]:
    """Let each rater judge in a thread of their own until the time is over or nothing is left."""
    measured = [Measured() for _ in cookies]
    begin = threading.Barrier(len(cookies) + 1)
    threads = [
        threading.Thread(target=_judge, args=(server.port, round_id, own, seconds, begin, into), daemon=True)
        for own, into in zip(cookies, measured, strict=True)
    ]
    for thread in threads:
        thread.start()
    begin.wait()
    started, cpu_before = time.perf_counter(), server.cpu_seconds()
    for thread in threads:
        thread.join(seconds + 120)
    cpu = server.cpu_seconds() - cpu_before
    cycles = sorted(cycle for rater in measured for cycle in rater.cycles)
    errors = [error for rater in measured for error in rater.errors]
    for error in errors[:5]:
        say(f"error: {error}")
    elapsed = max((rater.finished for rater in measured), default=started) - started
    return {
        "labels_per_s": round(len(cycles) / elapsed, 1) if cycles else 0.0,
        **{f"p{p}_ms": round(1000 * _percentile(cycles, p), 1) for p in (50, 95, 99)},
        "errors": len(errors),
        "acknowledged": len(cycles),
        "server_cpu_ms_per_label": round(1000 * cpu / max(len(cycles), 1), 2),
    }


def _judge(
    port: int,
    round_id: int,
    cookies: dict[str, str],
    seconds: float,
    begin: threading.Barrier,
    into: Measured,
) -> None:
    with HttpRater(port, cookies) as rater:
        try:
            shown = rater.judge(round_id)
        except Exception as error:  # whatever it is, it is the benchmark's finding
            into.errors.append(repr(error))
            shown = None
        begin.wait()
        end = time.perf_counter() + seconds
        while shown is not None and (start := time.perf_counter()) < end:
            try:
                shown = _save(rater, shown)
            except Exception as error:
                into.errors.append(repr(error))
                return
            into.finished = time.perf_counter()
            into.cycles.append(into.finished - start)


def _save(rater: HttpRater, shown: Shown) -> Shown | None:
    return rater.save(shown, random.choice(shown.choices))


def build(*, raters: int, tasks: int) -> tuple[int, list[dict[str, str]]]:
    """An open round, and the cookies of raters who are logged in already."""
    import django

    django.setup()
    from labeling.models import Membership, Project
    from tests import factories
    from tests.labeling.open_round import make_open_round

    project: Project = factories.make_project()
    started = time.perf_counter()
    round = make_open_round(project, tasks=tasks, overlap=1, text=STORY)
    say(f"{tasks} tasks made in {time.perf_counter() - started:.1f} s")
    settle()
    users = [factories.make_user(f"rater{n}", project, Membership.Role.RATER) for n in range(raters)]
    return round.pk, [_logged_in(user) for user in users]


def settle() -> None:
    """Do at once what PostgreSQL's own housekeeping would do within minutes of a bulk load."""
    from django.db import connection

    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")


def _logged_in(user: Any) -> dict[str, str]:
    from django.conf import settings
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore

    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[-1]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    assert session.session_key is not None
    return {settings.SESSION_COOKIE_NAME: session.session_key, settings.CSRF_COOKIE_NAME: "c" * 32}


def count(round_id: int) -> dict[str, int]:
    """What the store holds in the end. Too many: labels beyond the one that each task wants."""
    from django.db import connection
    from django.db.models import Count

    from labeling.models import Label

    labels = Label.objects.filter(assignment__round=round_id, value__isnull=False)
    twice = labels.values("assignment__task").annotate(n=Count("pk")).filter(n__gt=1)
    found = {"stored": labels.count(), "too_many": sum(row["n"] - 1 for row in twice)}
    connection.close()
    return found


@contextmanager
def _database(store: str, var: Path) -> Iterator[str]:
    if store == "sqlite":
        yield f"sqlite:///{var / 'db.sqlite3'}"
    else:
        with postgres_cluster() as cluster:
            yield cluster.create_database("ratchet")


def _percentile(ascending: list[float], percent: int) -> float:
    return ascending[min(len(ascending) * percent // 100, len(ascending) - 1)] if ascending else 0.0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
