"""The only writer of labels: save and undo. What people judge enters the loop here.

A save is one transaction and acknowledged after its commit. It takes an assignment from leased to done and
is counted once however often it is sent: the key of the form is unique.
"""

import math
import uuid
from dataclasses import dataclass

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from labeling.assignment import (
    LeaseLost,
    current_lease,
    end_leases,
    lease_end,
    lock_progress,
    lock_progress_of,
    lock_round,
    take_next,
)
from labeling.label_values import InvalidLabel, validate
from labeling.models import Assignment, Label, LostLease, RaterProgress, Round, RoundClosed

__all__ = [
    "AlreadyLabelled",
    "InvalidLabel",
    "LeaseLost",
    "NothingToUndo",
    "RoundClosed",
    "save_and_next",
    "save_label",
    "undo",
    "validate",
]

State = Assignment.State
LONGEST_SECONDS = 86_400.0


class AlreadyLabelled(Exception):
    """The rater has a label on this task already, from another tab or another showing of the form."""


class NothingToUndo(Exception):
    """The rater has no label that counts in this round."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rater sent for one showing of a task."""

    assignment_id: int
    rater: AbstractBaseUser
    value: object
    key: uuid.UUID
    seconds: float


def save_label(
    *, assignment_id: int, rater: AbstractBaseUser, value: object, key: uuid.UUID, seconds: float
) -> Label:
    """Store what a rater said. Sent again with the same key, it changes nothing and returns the same label.

    Raise InvalidLabel, RoundClosed, LeaseLost or AlreadyLabelled; nothing is stored then.
    """
    answer = Answer(assignment_id=assignment_id, rater=rater, value=value, key=key, seconds=seconds)
    return _save(answer, and_next=False)[0]


def save_and_next(
    *, assignment_id: int, rater: AbstractBaseUser, value: object, key: uuid.UUID, seconds: float
) -> tuple[Label, Assignment | None]:
    """Like `save_label`, and lease the rater's next task in the same transaction; None: nothing is left."""
    answer = Answer(assignment_id=assignment_id, rater=rater, value=value, key=key, seconds=seconds)
    return _save(answer, and_next=True)


def undo(*, round: Round, rater: AbstractBaseUser) -> tuple[Assignment, Label]:
    """Take back the rater's last label that counts: they hold its task again. Return it with the old label.

    Another task that they hold goes back. Raise NothingToUndo, RoundClosed.
    """
    with transaction.atomic():
        progress = lock_progress(round_id=round.pk, rater=rater)
        locked = lock_round(round.pk)
        if locked.state == Round.State.CLOSED:
            raise RoundClosed
        counting = Label.objects.filter(rater_id=rater.pk, counts_for__round=round.pk)
        last = counting.order_by("-pk").first()
        if last is None:
            raise NothingToUndo
        held = Assignment.objects.filter(round=round.pk, rater_id=rater.pk, state=State.LEASED)
        end_leases(round=locked, leases=list(held))
        Label.objects.create(
            assignment_id=last.assignment_id,
            rater_id=rater.pk,
            protocol_id=last.protocol_id,
            value=None,
            shown=last.shown,
            supersedes=last,
            key=uuid.uuid4(),
        )
        done = Assignment.objects.filter(pk=last.assignment_id, state=State.DONE)
        done.update(state=State.LEASED, label=None, leased_until=lease_end(timezone.now()))
        progress.labels -= 1
        progress.save(update_fields=["labels"])
        assignment = current_lease(progress)
        assert assignment is not None
    return assignment, last


def _save(answer: Answer, *, and_next: bool) -> tuple[Label, Assignment | None]:
    try:
        with transaction.atomic():
            return _save_once(answer, and_next=and_next)
    except IntegrityError:
        # Somebody stored this key: the same form came before, and its label was undone since.
        with transaction.atomic():
            progress = lock_progress_of(assignment_id=answer.assignment_id, rater=answer.rater)
            label = _saved_before(answer)
            if label is None:
                raise
            return label, _following(progress) if and_next else None


def _save_once(answer: Answer, *, and_next: bool) -> tuple[Label, Assignment | None]:
    progress = lock_progress_of(assignment_id=answer.assignment_id, rater=answer.rater)
    own = _locked_with_protocol().filter(rater=answer.rater.pk)
    slot = own.filter(pk=answer.assignment_id, state=State.LEASED).first()
    late = slot is None
    if slot is None:
        label = _saved_before(answer)
        if label is not None:
            return label, _following(progress) if and_next else None
        slot = _slot_for_late_label(answer)
    label = _store(answer, slot)
    progress.labels += 1
    following = None
    if and_next:
        following = _following(progress) if late else take_next(progress)
    progress.save(update_fields=["labels", "cursor"])
    return label, following


def _store(answer: Answer, slot: Assignment) -> Label:
    value = validate(answer.value, slot.round.protocol, slot.shown)
    label = Label.objects.create(
        assignment=slot,
        rater_id=answer.rater.pk,
        protocol=slot.round.protocol,
        value=value,
        shown=slot.shown,
        seconds=_plausible(answer.seconds),
        key=answer.key,
    )
    taken = Assignment.objects.filter(pk=slot.pk, state=slot.state)
    if not taken.update(state=State.DONE, rater=answer.rater.pk, label=label, shown=slot.shown):
        raise LeaseLost("Somebody else took this task meanwhile.")
    return label


def _saved_before(answer: Answer) -> Label | None:
    """The label that an earlier request with the same key stored; InvalidLabel if it was for another task."""
    label = Label.objects.select_related("assignment").filter(key=answer.key).first()
    if label is not None:
        task_id = Assignment.objects.values_list("task_id", flat=True).get(pk=answer.assignment_id)
        if label.rater_id != answer.rater.pk or label.assignment.task_id != task_id:
            raise InvalidLabel("This form was sent before, for another task. Load the page again.")
    return label


def _slot_for_late_label(answer: Answer) -> Assignment:
    """A slot of the same task, for a rater whose lease ended while they were judging, as they saw it."""
    asked = Assignment.objects.select_related("round").get(pk=answer.assignment_id)
    if asked.round.state == Round.State.CLOSED:
        raise RoundClosed
    own = _locked_with_protocol().filter(task=asked.task_id, rater=answer.rater.pk).first()
    if own is not None and own.state == State.DONE:
        raise AlreadyLabelled
    lost = LostLease.objects.filter(task=asked.task_id, rater=answer.rater.pk).last()
    if lost is None:
        raise LeaseLost("You do not hold this task. Open the round to get a task of your own.")
    free = _locked_with_protocol(skip_locked=True).filter(task=asked.task_id, state=State.OPEN)
    slot = own or free.order_by("slot").first()
    if slot is None:
        raise LeaseLost("You were away too long: somebody else judged this task. Here is another one.")
    slot.shown = lost.shown
    return slot


def _locked_with_protocol(*, skip_locked: bool = False) -> QuerySet[Assignment]:
    locked = Assignment.objects.select_for_update(no_key=True, of=("self",), skip_locked=skip_locked)
    return locked.select_related("round__protocol")


def _following(progress: RaterProgress) -> Assignment | None:
    """What the rater does when a save ended none of their leases: the task they hold, or a new one."""
    held = current_lease(progress)
    if held is None:
        held = take_next(progress)
        progress.save(update_fields=["cursor"])
    return held


def _plausible(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_SECONDS) if math.isfinite(seconds) else 0.0
