"""Many raters at once against the real server, through the real pages, on both stores.

What unit tests cannot show: threads, processes and the store's own locks. Each store gets one server; what it
holds in the end is read with plain SQL, past all our code.
"""

import os
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import postgres_cluster
from tests.http_rater import HttpRater, Refused, Shown
from tests.real_round import PASSWORD, make_rounds
from tests.real_server import environment, prepare, real_server

pytestmark = pytest.mark.slow

RATERS = 32
SIZES = {"drain": (300, 3), "claim": (RATERS, 1), "double click": (60, 1), "close": (400, 1)}
LABELS = """
SELECT assignment.task_id, label.rater_id, label.id
FROM labeling_label AS label JOIN labeling_assignment AS assignment ON assignment.id = label.assignment_id
WHERE assignment.round_id = {round} AND label.value IS NOT NULL
"""
STATES = "SELECT state, count(*) FROM labeling_assignment WHERE round_id = {round} GROUP BY state"


@dataclass
class Site:
    port: int
    database: str
    rounds: dict[str, int]
    raters: list[HttpRater]

    def query(self, sql: str, *, of: str) -> list[tuple[Any, ...]]:
        statement = sql.format(round=self.rounds[of])
        if self.database.startswith("sqlite"):
            store = sqlite3.connect(self.database.removeprefix("sqlite:///"))
            try:
                return store.execute(statement).fetchall()
            finally:
                store.close()
        with psycopg.connect(self.database) as postgres:
            return postgres.execute(statement.encode()).fetchall()

    def together(self, work: Callable[[HttpRater], Any]) -> list[Any]:
        """Let every rater do the same, in a thread each, all beginning at once."""
        begin = threading.Barrier(len(self.raters))

        def start(rater: HttpRater) -> Any:
            begin.wait()
            return work(rater)

        with ThreadPoolExecutor(len(self.raters)) as pool:
            return list(pool.map(start, self.raters))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    var: Path = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        if request.param == "postgres":
            if reason := postgres_cluster.missing():
                (pytest.fail if os.environ.get("RATCHET_REQUIRE_ALL_TESTS") else pytest.skip)(reason)
            cluster = stack.enter_context(postgres_cluster.postgres_cluster())
            database = cluster.create_database("drain")
        else:
            database = f"sqlite:///{var / 'db.sqlite3'}"
        env = environment(database=database, var=var)
        prepare(env)
        rounds = dict(zip(SIZES, make_rounds(env, *SIZES.values(), raters=RATERS), strict=True))
        server = stack.enter_context(real_server(env, processes=2))
        raters = [stack.enter_context(HttpRater(server.port)) for _ in range(RATERS)]
        site = Site(server.port, database, rounds, raters)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: raters[n].log_in(f"rater{n}", PASSWORD), range(RATERS)))
        yield site


def test_32_raters_drain_300_tasks_of_overlap_3_to_exactly_900_labels(site: Site) -> None:
    def judge_until_nothing_is_left(rater: HttpRater) -> int:
        acknowledged, shown = 0, rater.judge(site.rounds["drain"])
        while shown is not None:
            shown = rater.save(shown, random.choice(shown.choices))
            acknowledged += 1
        return acknowledged

    acknowledged = sum(site.together(judge_until_nothing_is_left))
    labels = site.query(LABELS, of="drain")
    assert acknowledged == len(labels) == 900
    by_task = Counter(task for task, *_ in labels)
    assert (len(by_task), set(by_task.values())) == (300, {3})
    assert len({(task, rater) for task, rater, _ in labels}) == 900
    assert site.query(STATES, of="drain") == [("done", 900)]


def test_raters_who_come_at_once_get_a_task_each(site: Site) -> None:
    shown: list[Shown] = site.together(lambda rater: rater.judge(site.rounds["claim"]))
    assert len({task.assignment for task in shown}) == RATERS


def test_a_double_click_from_two_connections_at_once_is_one_label(site: Site) -> None:
    clicking = site.raters[0]
    with HttpRater(site.port, dict(clicking.cookies)) as again, ThreadPoolExecutor(2) as pool:
        shown = clicking.judge(site.rounds["double click"])
        clicks = 0
        while shown is not None:
            task, choice = shown, shown.choices[0]
            both = [pool.submit(rater.save, task, choice) for rater in (clicking, again)]
            first, second = (answer.result() for answer in both)
            assert (first and first.assignment) == (second and second.assignment)
            shown, clicks = first, clicks + 1
    assert clicks == 60
    assert len(site.query(LABELS, of="double click")) == 60


def test_labels_count_or_are_refused_when_the_round_closes_under_them(site: Site) -> None:
    with HttpRater(site.port) as mia:
        mia.log_in("mia", PASSWORD)
        enough = threading.Semaphore(0)

        def judge_until_closed(rater: HttpRater) -> int:
            acknowledged, shown = 0, rater.judge(site.rounds["close"])
            while shown is not None:
                try:
                    shown = rater.save(shown, shown.choices[0])
                except Refused as refused:
                    assert refused.status == 409
                    assert "closed" in refused.body
                    break
                acknowledged += 1
                enough.release()
            return acknowledged

        def close() -> int:
            for _ in range(2 * RATERS):
                enough.acquire()
            return mia.request("POST", f"/rounds/{site.rounds['close']}/close/", {}).status

        with ThreadPoolExecutor(1) as manager:
            closing = manager.submit(close)
            acknowledged = sum(site.together(judge_until_closed))
            assert closing.result() < 400
    states = dict(site.query(STATES, of="close"))
    assert len(site.query(LABELS, of="close")) == acknowledged == states["done"] < 400
    assert set(states) == {"done", "withdrawn"}
