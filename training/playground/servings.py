"""Who wants which policy in memory, and which worker holds it: the row is the queue, as a run's is.

A claim is an UPDATE that succeeds only while the row is free. `worker` and `attempt` together name one claim;
every later write repeats both, so a worker that was taken for dead changes nothing any more.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from django.conf import settings
from django.db import models
from django.db.models import F
from django.db.models.functions import Now

from labeling.models import Policy
from training import runs
from training.models import Run, ServedPolicy

FREE: dict[str, Any] = {"worker": "", "leased_until": None, "address": "", "token": ""}
START = "Start one: python manage.py train_worker"


def want(policy: Policy) -> None:
    """Somebody chats with it: keep it in memory for a while. A failure before is forgiven."""
    now = {"wanted_until": _idle_end(), "used_at": Now()}
    made = ServedPolicy.objects.get_or_create(policy=policy, defaults=now)[1]
    if not made:
        ServedPolicy.objects.filter(policy=policy).update(**now, failed=False)


def still_used(policy_id: int) -> None:
    ServedPolicy.objects.filter(policy_id=policy_id).update(wanted_until=_idle_end(), used_at=Now())


@dataclass(frozen=True)
class Place:
    """Where a policy is. `state`: ready (then address and token), loading, waiting or failed."""

    state: Literal["ready", "loading", "waiting", "failed"]
    message: str = ""  # for people
    address: str = ""
    token: str = ""


def place_of(policy_id: int) -> Place:
    """Two queries where the policy is not in memory."""
    row = ServedPolicy.objects.filter(policy_id=policy_id).annotate(now=Now()).first()
    if row is not None and row.failed:
        return Place("failed", row.message)
    if row is not None and row.leased_until is not None and row.leased_until > row.now:
        if row.address:
            return Place("ready", "In memory.", row.address, row.token)
        return Place("loading", row.message or "The policy is being loaded.")
    workers = runs.workers_alive()
    if not workers:
        return Place("waiting", f"No training worker is alive, and only a worker can load a policy. {START}")
    if not settings.PLAYGROUND_SEATS:
        return Place("waiting", "No policies are held in memory here: RATCHET_PLAYGROUND_SEATS is 0.")
    if row is None or row.wanted_until < row.now:
        return Place("waiting", "Not in memory; it is loaded with your next message.")
    if not any(worker.device.startswith("cpu") for worker in workers):
        running = Run.objects.filter(state=Run.State.RUNNING, leased_until__gt=Now())
        if len(running) >= len(workers):
            return Place("waiting", f"{running[0]} has the device; the policy is loaded after it.")
    return Place("waiting", "Waiting for a worker to load it.")


def wanted_elsewhere() -> bool:
    """Whether a policy waits that nobody holds."""
    return ServedPolicy.objects.wanted().free().exists()


def claim(*, worker: str, lost: bool = True) -> ServedPolicy | None:
    """Take a policy that is wanted and that nobody holds. `lost`: also from a worker that seems gone."""
    waiting = ServedPolicy.objects.wanted().free()
    if not lost:
        waiting = waiting.filter(leased_until__isnull=True)
    for row in waiting.order_by("wanted_until")[:5]:
        taken = (
            waiting.filter(pk=row.pk)
            .order_by()
            .update(
                **{**FREE, "worker": worker, "leased_until": lease_end()},
                attempt=F("attempt") + 1,
                message="The policy is being loaded.",
            )
        )
        if taken == 1:
            return ServedPolicy.objects.select_related("policy").filter(pk=row.pk).first()
    return None


def write(row: ServedPolicy, **values: Any) -> bool:
    """Change a row that we hold; False, changing nothing, when it is not ours any more."""
    held = ServedPolicy.objects.filter(pk=row.pk, worker=row.worker, attempt=row.attempt)
    return held.update(**values) == 1


def release(row: ServedPolicy, *, failed: str = "", is_wanted: bool = True) -> bool:
    """Give it back; with the reason where it could not be held. Not wanted: until somebody writes to it."""
    unwanted = {} if is_wanted else {"wanted_until": Now()}
    return write(row, **FREE, **unwanted, failed=bool(failed), message=failed)


def lease_end() -> models.Expression:
    return _after(settings.RUN_LEASE_SECONDS)


def _idle_end() -> models.Expression:
    return _after(settings.PLAYGROUND_IDLE_SECONDS)


def _after(seconds: int) -> models.Expression:
    return models.ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=models.DateTimeField())
