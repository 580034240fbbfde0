"""The SQL that runs with every label: count it, finish its assignment, take the next one and what it shows.

By hand, because Django takes ten times as long to write these statements as either store to run them, and a
save runs all of them (docs/benchmarks.md). Each does one thing that `assignment` or `labels` asks for, in
their transaction, and is the same for SQLite and PostgreSQL.
"""

from datetime import datetime
from typing import TypeVar

from django.contrib.auth.models import AbstractBaseUser
from django.db import connection
from django.db.models import BigIntegerField, Model, QuerySet

from labeling.models import Assignment, Completion, Prompt, Protocol, RaterProgress, Round, Task

M = TypeVar("M", bound=Model)

LARGEST_ID = BigIntegerField.MAX_BIGINT

# An assignment with its round and protocol, for a member of the project.
ASSIGNMENT = """
SELECT assignment.*, {columns}
FROM labeling_assignment AS assignment
JOIN labeling_round AS round ON round.id = assignment.round_id
JOIN labeling_protocol AS protocol ON protocol.id = round.protocol_id
WHERE assignment.id = %(id)s AND (%(everywhere)s OR EXISTS (
    SELECT 1 FROM labeling_membership WHERE project_id = round.project_id AND user_id = %(rater)s
))
"""
OF_ROUND = ("id", "project_id", "number", "protocol_id", "state", "wanted")
OF_PROTOCOL = ("id", "project_id", "version", "kind", "question", "options")

COUNT = """
UPDATE labeling_raterprogress SET labels = labels + 1 WHERE round_id = %s AND rater_id = %s RETURNING *
"""

FINISH = """
UPDATE labeling_assignment SET state = 'done', label_id = %s
WHERE id = %s AND rater_id = %s AND state = 'leased'
"""

# Lease the first open assignment behind a position whose task the rater neither has nor skipped.
# OFFSET 0 keeps PostgreSQL from joining all that the rater ever had, and so the cost from growing with it.
TAKE = """
UPDATE labeling_assignment
SET state = 'leased', rater_id = %(rater)s, leased_at = %(now)s, leased_until = %(until)s
WHERE state = 'open' AND id = (
    SELECT slot.id FROM labeling_assignment AS slot
    WHERE slot.round_id = %(round)s AND slot.state = 'open' AND slot.position > %(after)s
        AND EXISTS (SELECT 1 FROM labeling_round WHERE id = %(round)s AND state = 'open')
        AND NOT EXISTS (
            SELECT 1 FROM labeling_assignment AS own
            WHERE own.task_id = slot.task_id AND own.rater_id = %(rater)s LIMIT 1 OFFSET 0
        )
        AND NOT EXISTS (
            SELECT 1 FROM labeling_skip AS skip
            WHERE skip.task_id = slot.task_id AND skip.rater_id = %(rater)s LIMIT 1 OFFSET 0
        )
    ORDER BY slot.position LIMIT 1 {lock}
)
RETURNING *
"""
SKIP_LOCKED = "FOR UPDATE OF slot SKIP LOCKED"

MOVE_CURSOR = "UPDATE labeling_raterprogress SET cursor = %s WHERE id = %s"

LABELS = "SELECT rater_id, labels FROM labeling_raterprogress WHERE round_id = %s"

PROMPT = """
SELECT prompt.*, task.round_id, task.purpose
FROM labeling_task AS task JOIN labeling_prompt AS prompt ON prompt.id = task.prompt_id
WHERE task.id = %s
"""

COMPLETIONS = """
SELECT completion.*
FROM labeling_taskitem AS item JOIN labeling_completion AS completion ON completion.id = item.completion_id
WHERE item.task_id = %s ORDER BY item.id
"""


def assignment_for(rater: AbstractBaseUser, assignment_id: int) -> Assignment:
    """An assignment with `round` and `round.protocol`; Assignment.DoesNotExist for strangers to it."""
    if assignment_id > LARGEST_ID:  # an address may hold any number, and the stores refuse to compare it
        raise Assignment.DoesNotExist
    columns = [f"round.{name} AS round__{name}" for name in OF_ROUND]
    columns += [f"protocol.{name} AS protocol__{name}" for name in OF_PROTOCOL]
    values = {"id": assignment_id, "rater": rater.pk, "everywhere": getattr(rater, "is_superuser", False)}
    found = Assignment.objects.raw(ASSIGNMENT.format(columns=", ".join(columns)), values)
    assignment = next(iter(found), None)
    if assignment is None:
        raise Assignment.DoesNotExist
    assignment.round = _part(Round, "round", OF_ROUND, assignment)
    assignment.round.protocol = _part(Protocol, "protocol", OF_PROTOCOL, assignment)
    return assignment


def _part(model: type[M], prefix: str, names: tuple[str, ...], row: Assignment) -> M:
    """Another model among the columns of a joined row; columns that are left out are fetched when read."""
    values = []
    for name in names:
        value = vars(row).pop(f"{prefix}__{name}")
        convert = getattr(model._meta.get_field(name), "from_db_value", None)
        values.append(convert(value, None, connection) if convert else value)
    return model.from_db(connection.alias, names, values)


def count_label(*, round_id: int, rater_id: int) -> RaterProgress | None:
    """Add one to the rater's labels, which locks their progress; None: they never took a task here."""
    return next(iter(RaterProgress.objects.raw(COUNT, [round_id, rater_id])), None)


def finish(*, assignment_id: int, rater_id: int, label_id: int) -> bool:
    """Take an assignment from leased to done; False: the rater does not hold it."""
    with connection.cursor() as cursor:
        cursor.execute(FINISH, [label_id, assignment_id, rater_id])
        return cursor.rowcount == 1


def take(*, round_id: int, rater_id: int, after: int, now: datetime, until: datetime) -> Assignment | None:
    values = {
        "round": round_id,
        "rater": rater_id,
        "after": after,
        "now": connection.ops.adapt_datetimefield_value(now),
        "until": connection.ops.adapt_datetimefield_value(until),
    }
    lock = SKIP_LOCKED if connection.features.has_select_for_update_skip_locked else ""
    return next(iter(Assignment.objects.raw(TAKE.format(lock=lock), values)), None)


def move_cursor(progress: RaterProgress, to: int) -> None:
    progress.cursor = to
    with connection.cursor() as cursor:
        cursor.execute(MOVE_CURSOR, [to, progress.pk])


def labels_by_rater(round_id: int) -> dict[int, int]:
    with connection.cursor() as cursor:
        cursor.execute(LABELS, [round_id])
        return dict(cursor.fetchall())


def task_with_content(task_id: int) -> Task:
    """A task whose `prompt` and `completions.all()` cost no query more."""
    prompt = Prompt.objects.raw(PROMPT, [task_id])[0]
    of_task = {name: vars(prompt)[name] for name in ("round_id", "purpose")}
    columns = {"id": task_id, "prompt_id": prompt.pk, **of_task}
    task = Task.from_db(connection.alias, list(columns), list(columns.values()))
    task.prompt = prompt
    completions: QuerySet[Completion] = Completion.objects.none()
    completions._result_cache = list(Completion.objects.raw(COMPLETIONS, [task_id]))
    vars(task)["_prefetched_objects_cache"] = {"completions": completions}  # where prefetch_related keeps it
    return task
