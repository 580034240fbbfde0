"""Read the labels that count, task by task, in batches: memory does not grow with the number of labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

from labeling.agreement import Outcome
from labeling.comparisons import Judgement, Kind, votes_of
from labeling.models import Assignment, Prompt, Round, Task, TaskItem

TASKS_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class JudgedTask:
    """A task with the labels that count, and the texts its rows are made of."""

    prompt: Prompt
    judgements: list[Judgement]
    texts: dict[int, str]  # completion id -> text
    policies: dict[int, int]  # completion id -> policy id
    keys: list[str]  # of the labels, in the order of the judgements


def judged_tasks(rounds: Sequence[Round], *, purpose: str | None = None) -> Iterator[JudgedTask]:
    """Tasks of these rounds with at least one label that counts, oldest task first.

    Two queries a batch, found by primary key. Raters are numbered by `rater_id`; see `freezing` for names.
    """
    tasks = Task.objects.filter(round__in=rounds)
    if purpose is not None:
        tasks = tasks.filter(purpose=purpose)
    last = 0
    while ids := list(tasks.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:TASKS_AT_ONCE]):
        last = ids[-1]
        yield from _read(ids)


def _read(task_ids: list[int]) -> Iterator[JudgedTask]:
    done = (
        Assignment.objects.filter(task__in=task_ids, label__isnull=False)
        .select_related("label__protocol", "task__prompt")
        .defer("task__prompt__html")
        .order_by("task_id", "rater_id")
    )
    items: dict[int, list[TaskItem]] = {}
    for item in (
        TaskItem.objects.filter(task__in=task_ids).select_related("completion").order_by("completion")
    ):
        items.setdefault(item.task_id, []).append(item)
    for task_id, group in groupby(done, key=lambda assignment: assignment.task_id):
        assignments = list(group)
        completions = [item.completion for item in items.get(task_id, [])]
        prompt = assignments[0].task.prompt
        yield JudgedTask(
            prompt=prompt,
            judgements=[
                Judgement(
                    task=task_id,
                    prompt=prompt.pk,
                    rater=cast(int, assignment.rater_id),
                    kind=cast(Kind, _label(assignment).protocol.kind),
                    value=_label(assignment).value,
                    completions=tuple(completion.pk for completion in completions),
                )
                for assignment in assignments
            ],
            texts={completion.pk: completion.text for completion in completions},
            policies={completion.pk: completion.policy_id for completion in completions},
            keys=[_label(assignment).key.hex for assignment in assignments],
        )


def _label(assignment: Assignment) -> Any:
    return assignment.label  # not null: filtered


def judgements_of(round: Round) -> Iterator[Judgement]:
    """Every label that counts in this round, task by task."""
    for task in judged_tasks([round]):
        yield from task.judgements


def gate_outcomes(round: Round) -> list[Outcome]:
    """What people said of the round's new policy against the old one, one entry for each label.

    A tie and "both bad" are half a win: neither was preferred. Empty without two policies, and in rounds
    that ask for ratings.
    """
    new, old = round.new_policy_id, round.old_policy_id
    if new is None or old is None or new == old:
        return []
    outcomes = []
    for task in judged_tasks([round], purpose=Task.Purpose.GATE):
        for judgement in task.judgements:
            if judgement.kind == "rating":
                continue
            sides = {policy: completion for completion, policy in task.policies.items()}
            if set(sides) != {new, old} or len(task.policies) != 2:
                continue
            votes = votes_of(judgement)
            vote = next(iter(votes.values()), 0)
            if sides[new] > sides[old]:  # a vote is positive for the lower id
                vote = -vote
            outcomes.append(Outcome(task.prompt.pk, 1.0 if vote > 0 else 0.0 if vote < 0 else 0.5))
    return outcomes
