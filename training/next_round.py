"""What closes the circle: a new policy goes back to the people who taught it.

The new round asks what the last sampled round asked, of the new policy. A share of its tasks are the gate:
new policy against the current one, blind, on held-out prompts. Ratings compare nothing, so after a round of
ratings people are asked to compare.
"""

import dataclasses
import logging
from typing import Any

from django.db import transaction

from labeling import protocols, rounds
from labeling.models import Policy, Project, Prompt, Protocol, Round, Task
from training.models import Run

log = logging.getLogger(__name__)

GATE_SHARE = 0.2
# When a project never sampled a round: its labels were imported.
FIRST_TRAIN_PROMPTS = 100
FIRST_TEST_PROMPTS = 20
COMPARED = 2  # completions in a task, at least, once people compare
# When a project never compared.
FIRST_QUESTION = "Which is better?"
FIRST_OPTIONS: dict[str, Any] = {"strengths": 4, "tie": True, "both_bad": True}


class NoNextRound(Exception):
    """No round can be planned; the message says why."""


def after(*, run: Run, policy: Policy) -> dict[str, Any]:
    """Make the round for a run's policy inside the caller's transaction; what changes on the run's row.

    A round that cannot be made does not undo the run: its message says why.
    """
    try:
        with transaction.atomic():
            made = create_next_round(project=run.project, policy=policy)
    except Exception as error:
        if not isinstance(error, NoNextRound):
            log.exception("no next round after run %s", run.pk)
        return {"message": f"Complete. The next round was not made: {error}"}
    asks = f"Complete. {made} asks for completions by {policy}."
    return {"next_round": made, "message": f"{asks} {_why_no_gate(made)}".strip()}


def _why_no_gate(made: Round) -> str:
    """Why the round cannot promote the policy; empty when it can."""
    if made.old_policy is None:
        return "It has no gate: the project has no current policy to compare with."
    if any(request.purpose == Task.Purpose.GATE for request in rounds.wanted(made)):
        return ""
    return (
        "It has no gate: the project holds no prompts out that both policies could answer. Hold some out in "
        "the project's settings before the next round, or promote the policy by hand."
    )


def create_next_round(*, project: Project, policy: Policy) -> Round:
    last = project.rounds.filter(plan__source="sample").order_by("number").last()
    protocol = _protocol(project, last)
    plan = _plan(project, last, protocol)
    return rounds.create_round(project=project, protocol=protocol, plan=plan, new_policy=policy)


def _protocol(project: Project, last: Round | None) -> Protocol:
    """The newest version of what the last round asked; a comparison in place of ratings."""
    asked = project.protocols.order_by("-version")
    if not asked.exists():
        raise NoNextRound("the project has no protocol. Create a round by hand once.")
    if last is not None and last.protocol.kind != Protocol.Kind.RATING:
        asked = asked.filter(kind=last.protocol.kind)
    comparing = asked.exclude(kind=Protocol.Kind.RATING).first()
    return comparing or protocols.version_of(
        project=project, kind=Protocol.Kind.COMPARISON, question=FIRST_QUESTION, options=FIRST_OPTIONS
    )


def _plan(project: Project, last: Round | None, protocol: Protocol) -> rounds.RoundPlan:
    held_out = Prompt.objects.filter(project=project, split=Prompt.Split.TEST).count()
    if last is None:
        plan = rounds.RoundPlan(
            source="sample",
            train_prompts=FIRST_TRAIN_PROMPTS,
            test_prompts=min(FIRST_TEST_PROMPTS, held_out),
            gate_prompts=0,
        )
    else:
        plan = rounds.RoundPlan.from_json(last.plan)
        if last.protocol.kind == Protocol.Kind.RATING:
            plan = dataclasses.replace(plan, completions_per_task=_compared_before(project, protocol))
    if plan.gate_prompts > 0 or project.current_policy is None:
        return plan
    train, gate = with_gate(train=plan.train_prompts, test=plan.test_prompts, held_out=held_out)
    return dataclasses.replace(plan, train_prompts=train, gate_prompts=gate)


def _compared_before(project: Project, protocol: Protocol) -> int:
    """Completions in a task of the last sampled round of this kind."""
    alike = (
        project.rounds.filter(plan__source="sample", protocol__kind=protocol.kind).order_by("number").last()
    )
    return rounds.RoundPlan.from_json(alike.plan).completions_per_task if alike else COMPARED


def with_gate(*, train: int, test: int, held_out: int) -> tuple[int, int]:
    """Prompts for training and for the gate, out of the same number of tasks as before.

    >>> with_gate(train=180, test=20, held_out=100)
    (140, 40)
    >>> with_gate(train=180, test=20, held_out=30)
    (150, 30)
    """
    gate = min(round(GATE_SHARE * (train + test)), held_out, max(0, train - 1))
    return train - gate, gate
