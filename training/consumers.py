"""The run page's WebSocket: carries what the database knows of a run to whoever watches it.

The worker is another process, so there is no channel layer: each open page asks the database once a
second. After a reload, a dropped line or a restart of the server the page says which line of progress
it has (`?after=SEQ`), and the rest follows.
"""

import asyncio
import json
import logging
from typing import TypedDict
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer

from labeling.models.projects import AnyUser
from training.models import Metric, Run

log = logging.getLogger(__name__)

# Close codes
NOT_FOUND = 4404  # no such run, or not for this person: the page stops asking
TRY_AGAIN = 1013
BATCH = 500  # lines of progress in one message


class MetricLine(TypedDict):
    seq: int
    step: int
    at: float  # seconds since the epoch when it was stored: the page works out the time left
    values: dict[str, float]


class RunUpdate(TypedDict):
    """One message; `state` is Run.State."""

    metrics: list[MetricLine]
    state: str
    step: int
    total_steps: int
    message: str


class RunGone(Exception):
    """The run does not exist, or this person may not see it (any more)."""


def read_update(*, user: AnyUser, run_id: int, after: int) -> RunUpdate:
    """What the run says now, with the lines of progress behind `after`. Two queries. Raises RunGone."""
    run = Run.objects.managed_by(user).filter(pk=run_id)
    head = run.values("state", "step", "total_steps", "message").first()
    if head is None:
        raise RunGone
    lines = Metric.objects.filter(run_id=run_id, seq__gt=after).order_by("seq")[:BATCH]
    metrics = [
        MetricLine(seq=line.seq, step=line.step, at=line.created_at.timestamp(), values=line.values)
        for line in lines
    ]
    return RunUpdate(metrics=metrics, **head)


class RunConsumer(AsyncWebsocketConsumer):
    every = 1.0  # seconds between two looks

    async def connect(self) -> None:
        # Accepted before it is refused: a browser only sees the close code of an open socket.
        await self.accept()
        self.following = asyncio.create_task(self.follow())

    async def disconnect(self, code: int) -> None:
        self.following.cancel()

    async def follow(self) -> None:
        try:
            await self.send_updates()
        except RunGone:
            await self.close(code=NOT_FOUND)
        except OSError:
            return  # whoever watched has gone while something was sent
        except Exception:
            # A database that is busy or away for a moment: the page comes back by itself.
            log.exception("the socket of run %s ends", self.scope["url_route"]["kwargs"]["run_id"])
            await self.close(code=TRY_AGAIN)

    async def send_updates(self) -> None:
        """Send what is new until the page goes away. Raises RunGone."""
        user, run_id = self.scope["user"], self.scope["url_route"]["kwargs"]["run_id"]
        after, known = seq_asked(self.scope["query_string"]), None
        while True:
            update = await database_sync_to_async(read_update)(user=user, run_id=run_id, after=after)
            head = (update["state"], update["step"], update["total_steps"], update["message"])
            if update["metrics"] or head != known:
                await self.send(text_data=json.dumps(update))
                known = head
            if update["metrics"]:
                after = update["metrics"][-1]["seq"]
            if len(update["metrics"]) < BATCH:
                await asyncio.sleep(self.every)


def seq_asked(query: bytes) -> int:
    """The `after` of a query string; 0 where it is missing or no whole number.

    >>> seq_asked(b"after=12"), seq_asked(b""), seq_asked(b"after=-1&x=2")
    (12, 0, 0)
    """
    text = parse_qs(query.decode("latin-1")).get("after", ["0"])[-1]
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
