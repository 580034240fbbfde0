"""The only writer of labels: save and undo. What people judge enters the loop here.

A save is one transaction and acknowledged after its commit. It takes an assignment from leased to done and
is counted once however often it is sent: the key of the form is unique.
"""

import math
import uuid
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.utils import timezone

from labeling import statements
from labeling.assignment import (
    LeaseLost,
    current_lease,
    end_leases,
    lease_end,
    lock_progress,
    lock_round,
    lock_taken_progress,
    take_next,
    with_task,
)
from labeling.label_values import InvalidLabel, validate
from labeling.models import Assignment, Label, LostLease, Protocol, Round, RoundClosed, Skip

__all__ = [
    "AlreadyLabelled",
    "InvalidLabel",
    "LeaseLost",
    "NothingToUndo",
    "RoundClosed",
    "save_and_next",
    "save_label",
    "taken_back",
    "undo",
    "validate",
]

State = Assignment.State
LONGEST_SECONDS = 86_400.0


class AlreadyLabelled(Exception):
    """The rater has a label on this task already; the message is for them."""


class NothingToUndo(Exception):
    """The rater has no label that counts in this round."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rater sent for one showing of a task."""

    asked: Assignment  # as it was when the request came: its lease may have changed since
    rater: AbstractBaseUser
    value: object
    key: uuid.UUID
    seconds: float

    @property
    def protocol(self) -> Protocol:
        return self.asked.round.protocol


class _NotHeld(Exception):
    """The rater does not hold the task that they answer."""


def save_label(
    *, assignment: Assignment, rater: AbstractBaseUser, value: object, key: uuid.UUID, seconds: float
) -> Label:
    """Store what a rater said. Sent again with the same key and value, it changes nothing and returns the
    same label; with another value it is refused, and nobody takes it for saved.

    `assignment` is the one that was on the screen; whether it is still the rater's is asked here.
    Raise InvalidLabel, RoundClosed, LeaseLost or AlreadyLabelled; nothing is stored then.
    """
    answer = Answer(asked=assignment, rater=rater, value=value, key=key, seconds=seconds)
    return _save(answer, and_next=False)[0]


def save_and_next(
    *, assignment: Assignment, rater: AbstractBaseUser, value: object, key: uuid.UUID, seconds: float
) -> tuple[Label, Assignment | None]:
    """Like `save_label`, and lease the rater's next task in the same transaction; None: nothing is left."""
    answer = Answer(asked=assignment, rater=rater, value=value, key=key, seconds=seconds)
    label, following = _save(answer, and_next=True)
    return label, with_task(following)


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
        assignment = with_task(current_lease(progress))
        assert assignment is not None
    return assignment, last


def taken_back(assignment: Assignment) -> dict[str, Any]:
    """What the rater answered before they took it back; empty when this task was not undone."""
    last = assignment.events.select_related("supersedes").filter(rater=assignment.rater_id).last()
    undone = last.supersedes if last is not None and last.value is None else None
    return (undone.value or {}) if undone is not None else {}


def _save(answer: Answer, *, and_next: bool) -> tuple[Label, Assignment | None]:
    try:
        with transaction.atomic():
            return _save_at_once(answer, and_next=and_next)
    except (_NotHeld, IntegrityError):  # an integrity error: the key is stored already
        with transaction.atomic():
            return _save_late_or_again(answer, and_next=and_next)


def _save_at_once(answer: Answer, *, and_next: bool) -> tuple[Label, Assignment | None]:
    """The rater holds the task that they answer: as few statements as it takes."""
    progress = statements.count_label(round_id=answer.asked.round_id, rater_id=answer.rater.pk)
    if progress is None:
        raise LeaseLost("This task was never yours. Open the round to get a task of your own.")
    label = _store(answer, answer.asked)
    if not statements.finish(assignment_id=answer.asked.pk, rater_id=answer.rater.pk, label_id=label.pk):
        raise _NotHeld
    return label, take_next(progress) if and_next else None


def _save_late_or_again(answer: Answer, *, and_next: bool) -> tuple[Label, Assignment | None]:
    """The label is stored already, or its lease ended while the rater was judging."""
    progress = lock_taken_progress(round_id=answer.asked.round_id, rater=answer.rater)
    label = _saved_before(answer)
    if label is None:
        slot = _slot_for_late_label(answer)
        label = _store(answer, slot)
        done = {"state": State.DONE, "rater": answer.rater.pk, "label": label, "shown": slot.shown}
        Assignment.objects.filter(pk=slot.pk).update(**done)
        statements.count_label(round_id=progress.round_id, rater_id=progress.rater_id)
    following = (current_lease(progress) or take_next(progress)) if and_next else None
    return label, following


def _store(answer: Answer, slot: Assignment) -> Label:
    return Label.objects.create(
        assignment=slot,
        rater_id=answer.rater.pk,
        protocol=answer.protocol,
        value=validate(answer.value, answer.protocol, slot.shown),
        shown=slot.shown,
        seconds=_plausible(answer.seconds),
        key=answer.key,
    )


def _saved_before(answer: Answer) -> Label | None:
    """The label that an earlier request with the same key stored; InvalidLabel if it was for another task."""
    label = Label.objects.select_related("assignment").filter(key=answer.key).first()
    if label is None:
        return None
    if label.rater_id != answer.rater.pk or label.assignment.task_id != answer.asked.task_id:
        raise InvalidLabel("This form was sent before, for another task. Load the page again.")
    if label.value != validate(answer.value, answer.protocol, label.shown):
        raise AlreadyLabelled("Your first answer to that task had arrived, and stands. Undo it to change it.")
    return label


def _slot_for_late_label(answer: Answer) -> Assignment:
    """A slot of the task that the rater holds or that is free, locked, with what they saw on the screen."""
    asked, rater_id = answer.asked, answer.rater.pk
    if Round.objects.values_list("state", flat=True).get(pk=asked.round_id) == Round.State.CLOSED:
        raise RoundClosed
    own = Assignment.objects.select_for_update().filter(task=asked.task_id, rater=rater_id).first()
    if own is not None and own.state == State.DONE:
        raise AlreadyLabelled("You answered that task before, perhaps in another tab; that answer stands.")
    if own is not None and own.pk == asked.pk:
        return own  # they got it back meanwhile
    return _slot_as_it_was_shown(answer, own)


def _slot_as_it_was_shown(answer: Answer, own: Assignment | None) -> Assignment:
    """A slot of the task for a rater who lost theirs: another one that they hold by now, or a free one."""
    task_id = answer.asked.task_id
    lost = LostLease.objects.filter(task=task_id, rater=answer.rater.pk).last()
    if Skip.objects.filter(task=task_id, rater=answer.rater.pk).exists():
        raise LeaseLost("You skipped this task. Open the round to get another one.")
    if lost is None:
        raise LeaseLost("You do not hold this task. Open the round to get a task of your own.")
    free = Assignment.objects.select_for_update(skip_locked=True).filter(task=task_id, state=State.OPEN)
    slot = own or free.first()
    if slot is None:
        raise LeaseLost("You were away too long: somebody else judged this task. Here is another one.")
    slot.shown = lost.shown
    return slot


def _plausible(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_SECONDS) if math.isfinite(seconds) else 0.0
