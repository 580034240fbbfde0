"""The lease of a run: who may write the row, and until when.

A claim is an UPDATE that succeeds only while the row is still free; count 0 means somebody else was
first. `worker` and `attempt` together name one claim, and every later write repeats both in its WHERE:
a worker that was taken for dead changes nothing any more. The database's clock decides, not the workers'.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import (
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connection,
    models,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models import F
from django.db.models.functions import Now

from training.models import Run

State = Run.State
FREE: dict[str, Any] = {"worker": "", "leased_until": None}
# What a database says that is away, busy, or has ended a transaction that froze (psycopg: InternalError).
NO_ANSWER = (OperationalError, InterfaceError, InternalError)


class LeaseLost(Exception):
    """Another worker or a person decided over this run: stop its child, write nothing."""


@dataclass(frozen=True)
class Lease:
    run_id: int
    worker: str
    attempt: int
    state: str  # running, or checking while a preflight is under way

    def rows(self) -> models.QuerySet[Run]:
        return Run.objects.filter(pk=self.run_id, worker=self.worker, attempt=self.attempt, state=self.state)

    def write(self, **values: Any) -> None:
        """Change the row. Raises LeaseLost, changing nothing, when it is no longer ours."""
        if self.rows().update(**values) != 1:
            raise LeaseLost(f"run {self.run_id} is no longer {self.worker}'s")

    def renew(self, **values: Any) -> None:
        self.write(leased_until=_lease_end(), **values)

    def end(self, state: str, message: str, **values: Any) -> None:
        """Give the row back in another state."""
        ended = Now() if state not in (State.QUEUED, State.CHECKING, State.READY) else None
        self.write(**{**FREE, "state": state, "message": message, "ended_at": ended, **values})


def claim_run(*, worker: str, device: str, lost: bool = True) -> Run | None:
    """Take the next run for a device; None when nothing waits or the device is busy.

    `lost`: also one whose worker let its lease run out.
    """
    waiting = Run.objects.waiting_for_a_device()
    if not lost:
        waiting = waiting.filter(state=State.QUEUED)
    for run in waiting[:5]:
        claimed = _claim(
            waiting.filter(pk=run.pk),
            worker=worker,
            device=device,
            state=State.RUNNING,
            attempt=F("attempt") + 1,
            started_at=models.functions.Coalesce(F("started_at"), Now()),
        )
        if claimed:
            return _with_its_parts(run)
    return None


def claim_check(*, worker: str, lost: bool = True) -> Run | None:
    """Take the next run that waits for its preflight; `lost` as above."""
    waiting = Run.objects.waiting_for_a_check()
    if not lost:
        waiting = waiting.filter(leased_until__isnull=True)
    for run in waiting[:5]:
        if _claim(waiting.filter(pk=run.pk), worker=worker):
            return _with_its_parts(run)
    return None


def _with_its_parts(run: Run) -> Run | None:
    """None: its project was deleted meanwhile."""
    return Run.objects.select_related("policy", "dataset", "round", "project").filter(pk=run.pk).first()


def _claim(rows: models.QuerySet[Run], **values: Any) -> bool:
    try:
        with transaction.atomic():
            return rows.order_by().update(leased_until=_lease_end(), **values) == 1
    except IntegrityError:  # another run is on this device
        return False


def others_may_claim_meanwhile() -> bool:
    """Whether another worker may reach the database while it does not answer us.

    Not with SQLite: what keeps one process from writing keeps every other from it too.
    """
    return connection.vendor != "sqlite"


@contextmanager
def frozen_transactions_end() -> Iterator[None]:
    """Meanwhile, PostgreSQL rolls back what a connection of this process leaves open for half a lease.

    A worker that freezes (SIGSTOP, a paused machine) between two statements of a transaction would keep
    its row locked, and everybody who may claim the run would wait for it.
    """
    connection_created.connect(_end_frozen_transactions)
    if connection.connection is not None:
        _end_frozen_transactions(connection)
    try:
        yield
    finally:
        connection_created.disconnect(_end_frozen_transactions)


def _end_frozen_transactions(connection: BaseDatabaseWrapper, **_: Any) -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            milliseconds = settings.RUN_LEASE_SECONDS * 500
            cursor.execute(f"SET idle_in_transaction_session_timeout = {int(milliseconds)}")


def _lease_end() -> models.Expression:
    return models.ExpressionWrapper(
        Now() + timedelta(seconds=settings.RUN_LEASE_SECONDS), output_field=models.DateTimeField()
    )
