"""Rounds with plain tasks, ready to judge; used by the tests of assignment, labels and rounds."""

import uuid
from typing import Any

from django.contrib.auth.models import User

from labeling.labels import save_label
from labeling.models import Assignment, Completion, Label, Project, Prompt, Protocol, Round, Task
from labeling.rounds import NewTask, RoundPlan, fill, open_round
from tests import factories

TIE = {"outcome": "tie"}


def make_prompts(project: Project, number: int, *, split: str = "train") -> list[Prompt]:
    first = Prompt.objects.filter(project=project).count()
    return Prompt.objects.bulk_create(
        Prompt(
            project=project,
            messages=[{"role": "user", "content": f"Tell me story {n}."}],
            html=[f"<p>Tell me story {n}.</p>"],
            digest=f"{n:064d}",
            split=split,
        )
        for n in range(first, first + number)
    )


def make_completions(
    prompts: list[Prompt], *, each: int = 2, policy_name: str = "starter", text: str = ""
) -> list[Completion]:
    """Some by one policy for each prompt, in order; all different, whatever `text` they share."""
    project = prompts[0].project
    policy = project.policies.filter(name=policy_name).first() or factories.make_policy(project, policy_name)
    written = [
        (prompt, f"{text} {policy_name} {n} of {prompt.pk}".strip())
        for prompt in prompts
        for n in range(each)
    ]
    return Completion.objects.bulk_create(
        Completion(prompt=prompt, policy=policy, text=text, html=f"<p>{text}</p>") for prompt, text in written
    )


def make_waiting_round(
    project: Project,
    *,
    tasks: int,
    overlap: int = 1,
    kind: str = Protocol.Kind.COMPARISON,
    completions: int | None = None,
    text: str = "",
) -> Round:
    """A filled round that was not opened yet."""
    each = completions or {"rating": 1, "comparison": 2, "ranking": 4}[kind]
    protocol = factories.make_protocol(project, kind)
    plan = RoundPlan(source="existing", train_prompts=tasks, completions_per_task=each, overlap=overlap)
    round = Round.objects.create(
        project=project,
        number=project.rounds.count() + 1,
        protocol=protocol,
        overlap=overlap,
        plan=plan.to_json(),
    )
    prompts = make_prompts(project, tasks)
    written = make_completions(prompts, each=each, text=text)
    fill(
        round=round,
        tasks=[
            NewTask(
                prompt_id=prompt.pk,
                purpose=Task.Purpose.TRAIN,
                completion_ids=[c.pk for c in written[n * each : (n + 1) * each]],
            )
            for n, prompt in enumerate(prompts)
        ],
    )
    return round


def make_open_round(project: Project, **how: Any) -> Round:
    round = make_waiting_round(project, **how)
    open_round(round)
    return round


def say_tie(assignment: Assignment, rater: User) -> Label:
    return save_label(assignment=assignment, rater=rater, value=TIE, key=uuid.uuid4(), seconds=1.0)
