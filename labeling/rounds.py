"""Rounds: create, fill with tasks, open, close, progress. A round is one turn of the ratchet for its raters.

`create_round` either makes the tasks from completions that are there and opens, or asks for completions
(signal `completions_wanted`) for what `wanted` lists; whoever writes them calls `fill` and `open_round`.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from labeling import signals, statements
from labeling.assignment import end_leases, lock_round
from labeling.models import (
    Assignment,
    Policy,
    Project,
    Protocol,
    RaterProgress,
    Round,
    RoundClosed,
    RoundNotReady,
    Task,
    TaskItem,
)
from labeling.round_plan import InvalidPlan, NewTask, RoundPlan, TaskRequest, from_existing, wanted

__all__ = [
    "InvalidPlan",
    "NewTask",
    "Progress",
    "RaterShare",
    "RoundClosed",
    "RoundNotReady",
    "RoundPlan",
    "TaskRequest",
    "close_round",
    "create_round",
    "fill",
    "open_round",
    "progress",
    "rater_progress",
    "reopen_round",
    "wanted",
]

State = Round.State
BATCH = 2_000  # tasks written together: bounds the memory of a large round
COMPLETIONS = {Protocol.Kind.RATING: (1, 1), Protocol.Kind.COMPARISON: (2, 2), Protocol.Kind.RANKING: (2, 16)}


@dataclass(frozen=True, kw_only=True)
class RaterShare:
    """What one rater sees of a round's progress."""

    mine: int
    done: int
    wanted: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a manager sees of it."""

    done: int
    wanted: int
    leased: int
    by_rater: dict[str, int]  # labels that count by user name, most first


def create_round(
    *,
    project: Project,
    protocol: Protocol,
    plan: RoundPlan,
    new_policy: Policy | None = None,
    against: Policy | None = None,
    tasks: Sequence[NewTask] | None = None,
) -> Round:
    """Make the project's next round. Raise InvalidPlan or RoundNotReady; nothing is made then.

    The gate compares `new_policy` with `against`, which is the current policy where nobody says otherwise.
    Source "sample": it waits, and `completions_wanted` is sent after the commit. Source "existing": it opens,
    with `tasks` where they are given, else with what the plan finds.
    """
    plan = plan.fitted_to(protocol)
    with transaction.atomic():
        locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        last = Round.objects.filter(project=locked).aggregate(last=Max("number"))["last"] or 0
        round = Round.objects.create(
            project=locked,
            number=last + 1,
            protocol=protocol,
            overlap=plan.overlap,
            plan=plan.to_json(),
            old_policy=against or locked.current_policy,
            new_policy=new_policy,
        )
        if plan.source == "existing":
            fill(round=round, tasks=list(from_existing(round)) if tasks is None else tasks)
            open_round(round)
        elif not wanted(round):
            raise RoundNotReady("The project has no prompts for this plan. Import prompts first.")
        else:
            transaction.on_commit(partial(signals.completions_wanted.send, sender=Round, round=round))
    return round


def fill(*, round: Round, tasks: Iterable[NewTask]) -> int:
    """Give a waiting round its tasks, all purposes mixed by the plan's seed; how many there are.

    Raise RoundNotReady when it is filled already or there is nothing to fill it with.
    """
    plan = RoundPlan.from_json(round.plan)
    shuffled = list(tasks)
    for task in shuffled:
        _check_task(task, kind=round.protocol.kind)
    random.Random(f"{plan.seed}-{round.number}").shuffle(shuffled)
    with transaction.atomic():
        locked = lock_round(round.pk)
        if locked.state != State.WAITING or Task.objects.filter(round=round.pk).exists():
            raise RoundNotReady(f"{round} has its tasks already.")
        if not shuffled:
            raise RoundNotReady("No prompt has as many different completions as this round shows.")
        remaining, position = iter(shuffled), 0
        while batch := list(islice(remaining, BATCH)):
            position = _write_tasks(round, batch, plan=plan, position=position)
        round.wanted = round.next_position = position
        round.save(update_fields=["wanted", "next_position"])
    return len(shuffled)


def open_round(round: Round) -> None:
    """Let raters in. Does nothing to a round that is open; raise RoundNotReady without tasks, RoundClosed."""
    with transaction.atomic():
        locked = lock_round(round.pk)
        if locked.state == State.CLOSED:
            raise RoundClosed
        if locked.wanted == 0:
            raise RoundNotReady(f"{round} has no tasks yet.")
        if locked.state == State.WAITING:
            locked.state, locked.opened_at = State.OPEN, timezone.now()
            locked.save(update_fields=["state", "opened_at"])
    round.refresh_from_db()


def close_round(round: Round) -> None:
    """End judging. Saves in flight either count or meet RoundClosed; what nobody answered is withdrawn.

    A round that still waits for completions is given up. Sends `round_closed` after the commit, once.
    """
    with transaction.atomic():
        locked = lock_round(round.pk)
        if locked.state == State.CLOSED:
            return
        judged = locked.state == State.OPEN
        assignments = Assignment.objects.filter(round=round.pk)
        # First what is open, so that nothing can be taken any more; leases in flight are then all visible.
        assignments.filter(state=Assignment.State.OPEN).update(state=Assignment.State.WITHDRAWN)
        leases = list(assignments.filter(state=Assignment.State.LEASED))
        end_leases(round=locked, leases=leases, into=Assignment.State.WITHDRAWN)
        locked.state, locked.closed_at = State.CLOSED, timezone.now()
        locked.save(update_fields=["state", "closed_at"])
        if judged:
            transaction.on_commit(partial(signals.round_closed.send, sender=Round, round=locked))
    round.refresh_from_db()


def reopen_round(round: Round) -> None:
    """Let raters go on where a closed round ended. Raise RoundNotReady when it never had tasks."""
    with transaction.atomic():
        locked = lock_round(round.pk)
        if locked.wanted == 0:
            raise RoundNotReady(f"{round} was closed before it had tasks. Make a new round.")
        if locked.state == State.CLOSED:
            withdrawn = Assignment.objects.filter(round=round.pk, state=Assignment.State.WITHDRAWN)
            withdrawn.update(state=Assignment.State.OPEN)
            locked.state, locked.closed_at = State.OPEN, None
            locked.save(update_fields=["state", "closed_at"])
    round.refresh_from_db()


def progress(round: Round) -> Progress:
    """How far a round is, from the raters' counters; no label is counted."""
    rows = RaterProgress.objects.filter(round=round.pk, labels__gt=0).order_by("-labels", "rater__username")
    by_rater = dict(rows.values_list("rater__username", "labels"))
    leased = Assignment.objects.filter(round=round.pk, state=Assignment.State.LEASED).count()
    return Progress(done=sum(by_rater.values()), wanted=round.wanted, leased=leased, by_rater=by_rater)


def rater_progress(round: Round, rater: AbstractBaseUser) -> RaterShare:
    """The same for a rater, with every task: one query over as many rows as the round has raters."""
    labels = statements.labels_by_rater(round.pk)
    return RaterShare(mine=labels.get(rater.pk, 0), done=sum(labels.values()), wanted=round.wanted)


def _check_task(task: NewTask, *, kind: str) -> None:
    least, most = COMPLETIONS[Protocol.Kind(kind)]
    number = len(task.completion_ids)
    if not least <= number <= most or len(set(task.completion_ids)) < number:
        raise ValueError(f"{kind} of {number} completions, not {least} to {most} different ones: {task}")


def _write_tasks(round: Round, batch: list[NewTask], *, plan: RoundPlan, position: int) -> int:
    """Store tasks with their items and slots, task by task; the next free position."""
    tasks = [Task(round_id=round.pk, prompt_id=new.prompt_id, purpose=new.purpose) for new in batch]
    Task.objects.bulk_create(tasks)
    TaskItem.objects.bulk_create(
        TaskItem(task_id=task.pk, completion_id=pk)
        for task, new in zip(tasks, batch, strict=True)
        for pk in new.completion_ids
    )
    slots = [
        Assignment(round_id=round.pk, task_id=task.pk, slot=slot, shown=_shuffled(new.completion_ids))
        for task, new in zip(tasks, batch, strict=True)
        for slot in range(plan.labels_of(task.purpose))
    ]
    for place, assignment in enumerate(slots, start=position):
        assignment.position = place
    Assignment.objects.bulk_create(slots)
    return position + len(slots)


def _shuffled(completion_ids: Sequence[int]) -> list[int]:
    """An order on screen, drawn anew for each assignment."""
    return random.sample(completion_ids, len(completion_ids))
