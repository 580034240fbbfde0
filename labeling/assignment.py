"""Which task a rater gets next: take, renew, skip, give back. Judging asks here between two labels.

Locks are taken in one order, so that nobody waits in a circle: the rater's own progress row (one rater's
requests queue there, whatever number of tabs), then the round (only when a slot changes its place), then
assignments. Taking a task waits for nobody: it passes locked rows by. Assignments are locked with their key,
since a save in flight holds a share of it (its label points there) before it changes the row.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.utils import timezone

from labeling import statements
from labeling.models import Assignment, LostLease, RaterProgress, Round, RoundClosed, RoundNotReady, Skip

State = Assignment.State
REASON_LENGTH = 200


class LeaseLost(Exception):
    """The task is no longer this rater's; the message says what to do."""


def next_assignment(*, round: Round, rater: AbstractBaseUser) -> Assignment | None:
    """The task that the rater holds in this round, else a new one; None when nothing is left for them.

    Raise RoundClosed or RoundNotReady when the round is not open.
    """
    with transaction.atomic():
        progress = lock_progress(round_id=round.pk, rater=rater)
        assignment = current_lease(progress)
        if assignment is None or not renew(assignment_id=assignment.pk, rater=rater):
            assignment = take_next(progress)
        if assignment is None:
            _require_open(round.pk)
    return with_task(assignment)


def renew(*, assignment_id: int, rater: AbstractBaseUser) -> bool:
    """Lengthen the rater's lease, also one that ran out but that nobody took. False: it is lost."""
    held = Assignment.objects.filter(pk=assignment_id, rater_id=rater.pk, state=State.LEASED)
    return held.update(leased_until=lease_end(timezone.now())) == 1


def skip(*, assignment_id: int, rater: AbstractBaseUser, reason: str) -> None:
    """Pass a task by for good. Its slot goes to somebody else, behind all others; twice is once."""
    asked = Assignment.objects.get(pk=assignment_id)
    with transaction.atomic():
        lock_taken_progress(round_id=asked.round_id, rater=rater)
        round = lock_round(asked.round_id)
        if round.state == Round.State.CLOSED:
            raise RoundClosed
        held = Assignment.objects.filter(pk=assignment_id, rater_id=rater.pk, state=State.LEASED).first()
        if held is not None:
            end_leases(round=round, leases=[held], skipped=True)
            said = Skip(task_id=held.task_id, rater_id=rater.pk, reason=_clean(reason))
            Skip.objects.bulk_create([said], ignore_conflicts=True)
        elif not Skip.objects.filter(task_id=asked.task_id, rater_id=rater.pk).exists():
            raise LeaseLost("This task is no longer yours, so there is nothing to skip.")


def give_back_all(rater: AbstractBaseUser) -> int:
    """Give back every lease of a rater who leaves; how many there were."""
    given_back = 0
    leases = Assignment.objects.filter(rater_id=rater.pk, state=State.LEASED)
    for round_id in sorted(leases.values_list("round_id", flat=True)):
        with transaction.atomic():
            lock_progress(round_id=round_id, rater=rater)
            given_back += end_leases(round=lock_round(round_id), leases=leases.filter(round_id=round_id))
    return given_back


# What follows is for the activities of this app, inside a transaction of theirs.


def lock_progress(*, round_id: int, rater: AbstractBaseUser) -> RaterProgress:
    """The rater's progress in a round, made when missing; their other requests wait from here on."""
    locked = RaterProgress.objects.select_for_update(no_key=True).filter(round_id=round_id, rater_id=rater.pk)
    progress = locked.first()
    if progress is None:
        new = RaterProgress(round_id=round_id, rater_id=rater.pk)
        RaterProgress.objects.bulk_create([new], ignore_conflicts=True)
        progress = locked.get()
    return progress


def lock_taken_progress(*, round_id: int, rater: AbstractBaseUser) -> RaterProgress:
    """The same, but raise LeaseLost for somebody who never took a task of the round."""
    try:
        return RaterProgress.objects.select_for_update(no_key=True).get(round_id=round_id, rater_id=rater.pk)
    except RaterProgress.DoesNotExist:
        raise LeaseLost("This task was never yours. Open the round to get a task of your own.") from None


def lock_round(round_id: int) -> Round:
    """Without key: labels and assignments that point at the round are stored meanwhile."""
    return Round.objects.select_for_update(no_key=True).get(pk=round_id)


def current_lease(progress: RaterProgress) -> Assignment | None:
    held = Assignment.objects.filter(round=progress.round_id, rater=progress.rater_id, state=State.LEASED)
    return held.first()


def take_next(progress: RaterProgress) -> Assignment | None:
    """Lease the next task to a rater who holds none, and move their cursor to it."""
    assignment = _take(progress, after=progress.cursor)
    if assignment is None:
        # Behind the cursor there is work only after an expiry, or when another's transaction failed.
        _sweep(progress.round_id)
        assignment = _take(progress, after=-1)
    if assignment is not None and assignment.position > progress.cursor:
        statements.move_cursor(progress, to=assignment.position)
    return assignment


def with_task(assignment: Assignment | None) -> Assignment | None:
    """Fetch what a page shows: task, prompt, completions. After the transaction: no lock waits for it."""
    if assignment is not None:
        assignment.task = statements.task_with_content(assignment.task_id)
    return assignment


def end_leases(
    *, round: Round, leases: Iterable[Assignment], into: State = State.OPEN, skipped: bool = False
) -> int:
    """Take leases away: each slot moves behind all others. The caller has locked the round."""
    position, lost = round.next_position, []
    for lease in leases:
        assert lease.rater_id is not None  # a constraint of the table
        still = Assignment.objects.filter(pk=lease.pk, rater=lease.rater_id, state=State.LEASED)
        if still.update(state=into, rater=None, leased_at=None, leased_until=None, position=position):
            position += 1
            lost.append(LostLease(task_id=lease.task_id, rater_id=lease.rater_id, shown=lease.shown))
    ended = position - round.next_position
    if ended:
        round.next_position = position
        Round.objects.filter(pk=round.pk).update(next_position=position)
        if not skipped:
            LostLease.objects.bulk_create(lost)
    return ended


def _take(progress: RaterProgress, *, after: int) -> Assignment | None:
    now = timezone.now()
    return statements.take(
        round_id=progress.round_id, rater_id=progress.rater_id, after=after, now=now, until=lease_end(now)
    )


def _sweep(round_id: int) -> None:
    """Give back the expired leases of a round, unless somebody is at it already.

    The caller may hold assignments and come to the round too late in the order of locks: it must not wait.
    """
    expired = Assignment.objects.filter(round=round_id, state=State.LEASED, leased_until__lt=timezone.now())
    if not expired.exists():
        return
    free = Round.objects.select_for_update(no_key=True, skip_locked=True)
    round = free.filter(pk=round_id, state=Round.State.OPEN).first()
    if round is not None:
        end_leases(round=round, leases=expired.select_for_update(skip_locked=True))


def _require_open(round_id: int) -> None:
    match Round.objects.values_list("state", flat=True).get(pk=round_id):
        case Round.State.CLOSED:
            raise RoundClosed
        case Round.State.WAITING:
            raise RoundNotReady("This round still waits for completions.")


def lease_end(now: datetime) -> datetime:
    return now + timedelta(seconds=settings.LEASE_SECONDS)


def _clean(reason: str) -> str:
    return reason.replace("\x00", "").strip()[:REASON_LENGTH]
