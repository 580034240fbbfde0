"""Read the labels that count, task by task, in batches: memory does not grow with the number of labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, cast
from uuid import UUID

from labeling.agreement import Outcome
from labeling.comparisons import Judgement, Kind, votes_of
from labeling.models import Assignment, Prompt, Protocol, Round, Task, TaskItem
from labeling.models.prompts import Message

TASKS_AT_ONCE = 500


@dataclass(frozen=True)
class AskedPrompt:
    pk: int
    messages: list[Message]
    split: str


@dataclass(frozen=True, kw_only=True)
class JudgedTask:
    """A task with the labels that count, and the texts its rows are made of."""

    prompt: AskedPrompt
    judgements: list[Judgement]
    texts: dict[int, str]  # completion id -> text
    policies: dict[int, int]  # completion id -> policy id
    keys: list[str]  # of the labels, in the order of the judgements


def judged_tasks(rounds: Sequence[Round], *, purpose: str | None = None) -> Iterator[JudgedTask]:
    """Tasks of these rounds with at least one label that counts, oldest task first.

    A few queries a batch, each by key, and no model objects: they would take most of the time.
    """
    kinds = dict(Protocol.objects.filter(project__rounds__in=rounds).values_list("pk", "kind"))
    tasks = Task.objects.filter(round__in=rounds)
    if purpose is not None:
        tasks = tasks.filter(purpose=purpose)
    last = 0
    while ids := list(tasks.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:TASKS_AT_ONCE]):
        last = ids[-1]
        yield from _read(ids, kinds)


class _Done(NamedTuple):
    """A label that counts."""

    task: int
    rater: int
    prompt: int
    protocol: int
    value: Any  # not null: it counts
    key: UUID


class _Shown(NamedTuple):
    """A completion of a task."""

    task: int
    pk: int
    policy: int
    text: str


def _read(task_ids: list[int], kinds: Mapping[int, str]) -> Iterator[JudgedTask]:
    done = (
        Assignment.objects.filter(task__in=task_ids, label__isnull=False)
        .order_by("task_id", "rater_id")
        .values_list(
            "task_id", "rater_id", "task__prompt_id", "label__protocol_id", "label__value", "label__key"
        )
    )
    labels = [_Done(*row) for row in done]
    prompts = {
        pk: AskedPrompt(pk, messages, split)
        for pk, messages, split in Prompt.objects.filter(
            pk__in={label.prompt for label in labels}
        ).values_list("pk", "messages", "split")
    }
    items: dict[int, list[_Shown]] = {}
    found = TaskItem.objects.filter(task__in=task_ids).order_by("completion_id")
    for row in found.values_list("task_id", "completion_id", "completion__policy_id", "completion__text"):
        items.setdefault(row[0], []).append(_Shown(*row))
    for task_id, group in groupby(labels, key=lambda label: label.task):
        of_task = list(group)
        completions = items.get(task_id, [])
        ids = tuple(completion.pk for completion in completions)
        yield JudgedTask(
            prompt=prompts[of_task[0].prompt],
            judgements=[
                Judgement(
                    task=task_id,
                    prompt=label.prompt,
                    rater=label.rater,
                    kind=cast(Kind, kinds[label.protocol]),
                    value=label.value,
                    completions=ids,
                )
                for label in of_task
            ],
            texts={completion.pk: completion.text for completion in completions},
            policies={completion.pk: completion.policy for completion in completions},
            keys=[label.key.hex for label in of_task],
        )


def judgements_of(round: Round) -> Iterator[Judgement]:
    """Every label that counts in this round, task by task."""
    for task in judged_tasks([round]):
        yield from task.judgements


def held_out_judgements(rounds: Sequence[Round]) -> Iterator[list[Judgement]]:
    """What raters said of each task whose prompt is held out: what a reward model is measured on."""
    for task in judged_tasks(rounds):
        if task.prompt.split == Prompt.Split.TEST:
            yield task.judgements


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
