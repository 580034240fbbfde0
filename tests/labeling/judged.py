"""Rounds that were judged, made row by row: what datasets and the manager's pages start from."""

import uuid
from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import User
from django.utils import timezone

from labeling.models import (
    Assignment,
    Completion,
    Label,
    Policy,
    Project,
    Prompt,
    Protocol,
    RaterProgress,
    Round,
    Task,
    TaskItem,
)
from tests import factories

# What a rater says of the first completion (above 0), of the second (below 0), a tie (0), both bad (None).
Vote = int | None


def make_round(project: Project, kind: str = "comparison", *, overlap: int = 1, **fields: Any) -> Round:
    protocol = Protocol.objects.filter(project=project, kind=kind).first()
    return Round.objects.create(
        project=project,
        number=project.rounds.count() + 1,
        protocol=protocol or factories.make_protocol(project, kind),
        state=fields.pop("state", Round.State.CLOSED),
        overlap=overlap,
        **fields,
    )


def make_prompt(project: Project, text: str, split: str = "train") -> Prompt:
    return Prompt.objects.create(
        project=project,
        messages=[{"role": "user", "content": text}],
        html=[f"<p>{text}</p>"],
        digest=uuid.uuid4().hex,
        split=split,
    )


def make_task(
    round: Round, prompt: Prompt, texts: Sequence[str], policies: Sequence[Policy], purpose: str = "train"
) -> Task:
    task = Task.objects.create(round=round, prompt=prompt, purpose=purpose)
    for text, policy in zip(texts, policies, strict=True):
        completion = Completion.objects.create(prompt=prompt, policy=policy, text=text)
        TaskItem.objects.create(task=task, completion=completion)
    return task


def say(task: Task, rater: User, value: dict[str, Any], *, shown: list[int] | None = None) -> Label:
    """Store a label that counts, as saving would leave it."""
    completions = [item.completion_id for item in task.items.order_by("completion_id")]
    assignment = Assignment.objects.create(
        round=task.round,
        task=task,
        slot=task.assignments.count(),
        position=0,
        state=Assignment.State.LEASED,
        rater=rater,
        leased_until=timezone.now(),
        shown=completions if shown is None else shown,
    )
    label = Label.objects.create(
        assignment=assignment,
        rater=rater,
        protocol=task.round.protocol,
        value=value,
        shown=assignment.shown,
        seconds=4,
        key=uuid.uuid4(),
    )
    assignment.state, assignment.label = Assignment.State.DONE, label
    assignment.save(update_fields=["state", "label"])
    counter, _ = RaterProgress.objects.get_or_create(round=task.round, rater=rater)
    counter.labels += 1
    counter.save(update_fields=["labels"])
    return label


def vote(task: Task, rater: User, vote: Vote, *, shown: list[int] | None = None) -> Label:
    return say(task, rater, comparison_value(task, vote), shown=shown)


def comparison_value(task: Task, vote: Vote) -> dict[str, Any]:
    first, second = (item.completion_id for item in task.items.order_by("completion_id"))
    if vote is None:
        return {"outcome": "both_bad"}
    if vote == 0:
        return {"outcome": "tie"}
    return {"outcome": "preferred", "preferred": first if vote > 0 else second, "strength": abs(vote)}


def compared_round(
    project: Project,
    raters: Sequence[User],
    votes: Sequence[Sequence[Vote]],
    *,
    test_tasks: int = 1,
    **fields: Any,
) -> Round:
    """A comparison round: one task for each entry of `votes`, which holds one vote for each rater.

    The last `test_tasks` tasks are on held-out prompts.
    """
    policy = Policy.objects.filter(project=project).first() or factories.make_policy(project)
    round = make_round(project, overlap=max(map(len, votes), default=1), **fields)
    for number, said in enumerate(votes):
        split = "test" if number >= len(votes) - test_tasks else "train"
        prompt = make_prompt(project, f"Tell me story {round.number}.{number}.", split)
        task = make_task(round, prompt, [f"A fox {number}.", f"A hen {number}."], [policy, policy], split)
        for rater, one in zip(raters, said, strict=False):
            vote(task, rater, one)
    return round
