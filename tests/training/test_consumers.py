"""The run page's socket: who may listen, what it says, and that it goes on where the page stopped."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.routing import URLRouter
from django.contrib.auth.models import AnonymousUser, User
from django.db import DatabaseError

from labeling.models import Membership, Project
from training import consumers
from training.models import Metric, Run
from training.routing import websocket_urlpatterns


class Socket:
    """A WebSocket of one person. (channels.testing would need daphne.)"""

    def __init__(self, user: User | AnonymousUser, path: str) -> None:
        path, _, query = path.partition("?")
        scope = {"type": "websocket", "path": path, "query_string": query.encode(), "user": user}
        application = URLRouter(websocket_urlpatterns)
        self.wire: Any = ApplicationCommunicator(application, scope)  # type: ignore[no-untyped-call]

    async def connect(self) -> None:
        await self.wire.send_input({"type": "websocket.connect"})
        assert (await self.wire.receive_output())["type"] == "websocket.accept"

    async def hear(self) -> dict[str, Any]:
        message = await self.wire.receive_output()
        assert message["type"] == "websocket.send", message
        return dict(json.loads(message["text"]))

    async def close_code(self) -> int:
        message = await self.wire.receive_output()
        assert message["type"] == "websocket.close", message
        return int(message["code"])

    async def disconnect(self) -> None:
        await self.wire.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.wire.wait()


Scenario = Callable[[Socket], Awaitable[Any]]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers.RunConsumer, "every", 0.02)


@pytest.fixture
def run(project: Project) -> Run:
    return Run.objects.create(
        project=project, method=Run.Method.DPO, state=Run.State.QUEUED, total_steps=50, message="Waiting."
    )


def add_lines(run: Run, *seqs: int) -> None:
    Metric.objects.bulk_create(Metric(run=run, seq=n, step=n * 5, values={"loss": 1 / n}) for n in seqs)


def on_socket(user: User | AnonymousUser, path: str, scenario: Scenario) -> Any:
    """Connect as this person and play the scenario."""

    async def play() -> Any:
        socket = Socket(user, path)
        await socket.connect()
        try:
            return await scenario(socket)
        finally:
            await socket.disconnect()

    return async_to_sync(play)()


def test_a_manager_hears_the_state_and_every_line_in_order(mia: User, run: Run) -> None:
    add_lines(run, 1, 2, 3)
    update = on_socket(mia, f"/ws/runs/{run.pk}/", Socket.hear)
    assert [line["seq"] for line in update["metrics"]] == [1, 2, 3]
    assert update["metrics"][1]["values"] == {"loss": 0.5}
    assert update["metrics"][1]["step"] == 10
    told = (update["state"], update["step"], update["total_steps"], update["message"])
    assert told == ("queued", 0, 50, "Waiting.")


def test_it_goes_on_behind_the_line_that_the_page_has(mia: User, run: Run) -> None:
    add_lines(run, 1, 2, 3)
    update = on_socket(mia, f"/ws/runs/{run.pk}/?after=2", Socket.hear)
    assert [line["seq"] for line in update["metrics"]] == [3]


@pytest.mark.parametrize("after", ["x", "-1", "1e3", "", "9" * 400])
def test_an_odd_number_of_the_last_line_means_from_the_start(mia: User, run: Run, after: str) -> None:
    add_lines(run, 1)
    update = on_socket(mia, f"/ws/runs/{run.pk}/?after={after}", Socket.hear)
    assert [line["seq"] for line in update["metrics"]] == [1]


def test_lines_that_come_later_are_sent_once(mia: User, run: Run) -> None:
    async def scenario(socket: Socket) -> list[int]:
        await socket.hear()
        await sync_to_async(add_lines)(run, 1)
        first = await socket.hear()
        await sync_to_async(add_lines)(run, 2, 3)
        second = await socket.hear()
        assert await socket.wire.receive_nothing(timeout=0.1)
        return [line["seq"] for update in (first, second) for line in update["metrics"]]

    assert on_socket(mia, f"/ws/runs/{run.pk}/", scenario) == [1, 2, 3]


def test_a_change_of_state_is_told_without_any_line(mia: User, run: Run) -> None:
    async def scenario(socket: Socket) -> dict[str, Any]:
        await socket.hear()
        await Run.objects.filter(pk=run.pk).aupdate(state="cancelled", message="Cancelled.")
        return await socket.hear()

    update = on_socket(mia, f"/ws/runs/{run.pk}/", scenario)
    assert (update["state"], update["metrics"]) == ("cancelled", [])


def test_a_long_run_arrives_whole_in_several_messages(
    mia: User, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "BATCH", 10)
    add_lines(run, *range(1, 26))

    async def scenario(socket: Socket) -> list[int]:
        updates = [await socket.hear() for _ in range(3)]
        return [line["seq"] for update in updates for line in update["metrics"]]

    assert on_socket(mia, f"/ws/runs/{run.pk}/", scenario) == list(range(1, 26))


@pytest.mark.parametrize("name", ["ann", "zed", None])
def test_nobody_but_a_manager_hears_anything(
    name: str | None, run: Run, request: pytest.FixtureRequest
) -> None:
    user = request.getfixturevalue(name) if name else AnonymousUser()
    assert on_socket(user, f"/ws/runs/{run.pk}/", Socket.close_code) == 4404


@pytest.mark.parametrize("run_id", [999_999, 10**25])
def test_a_run_that_is_not_there_closes_the_socket(mia: User, run_id: int) -> None:
    assert on_socket(mia, f"/ws/runs/{run_id}/", Socket.close_code) == 4404


def test_who_is_no_manager_any_more_hears_no_more(mia: User, run: Run) -> None:
    async def scenario(socket: Socket) -> int:
        await socket.hear()
        await Membership.objects.filter(user=mia).adelete()
        return await socket.close_code()

    assert on_socket(mia, f"/ws/runs/{run.pk}/", scenario) == 4404


def test_a_database_that_fails_for_a_moment_asks_the_page_to_come_again(
    mia: User, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**how: Any) -> None:
        raise DatabaseError("the database is away")

    monkeypatch.setattr(consumers, "read_update", fail)
    assert on_socket(mia, f"/ws/runs/{run.pk}/", Socket.close_code) == 1013


def test_a_page_that_goes_away_leaves_nothing_running(mia: User, run: Run) -> None:
    async def play() -> list[str]:
        socket = Socket(mia, f"/ws/runs/{run.pk}/")
        await socket.connect()
        await socket.hear()
        await socket.disconnect()
        await asyncio.sleep(0.05)
        return [str(task) for task in asyncio.all_tasks()]

    assert not [task for task in async_to_sync(play)() if "RunConsumer" in task]


def test_one_look_costs_two_queries(mia: User, run: Run, django_assert_num_queries: Any) -> None:
    add_lines(run, *range(1, 100))
    with django_assert_num_queries(2):
        consumers.read_update(user=mia, run_id=run.pk, after=90)


def test_who_leaves_while_something_is_sent_is_no_fault(
    mia: User, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def gone(*_: Any, **__: Any) -> None:
        raise OSError("the client is gone")

    monkeypatch.setattr(consumers.RunConsumer, "send", gone)

    async def scenario(socket: Socket) -> None:
        assert await socket.wire.receive_nothing(timeout=0.2)

    on_socket(mia, f"/ws/runs/{run.pk}/", scenario)
    assert not caplog.records
