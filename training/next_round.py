"""What closes the circle: a new policy goes back to the people who taught it.

The new round asks what the last sampled round asked, of the new policy. A share of its tasks are the gate:
new policy against the current one, blind, on held-out prompts.
"""

import dataclasses
import logging
from typing import Any

from django.db import transaction

from labeling import rounds
from labeling.models import Policy, Project, Prompt, Protocol, Round
from training.models import Run

log = logging.getLogger(__name__)

GATE_SHARE = 0.2
# When a project never sampled a round: its labels were imported.
FIRST_TRAIN_PROMPTS = 100
FIRST_TEST_PROMPTS = 20


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
    return {"next_round": made, "message": f"Complete. {made} asks for completions by {policy}."}


def create_next_round(*, project: Project, policy: Policy) -> Round:
    last = project.rounds.filter(plan__source="sample").order_by("number").last()
    protocol = _protocol(project, last)
    plan = _plan(project, last)
    return rounds.create_round(project=project, protocol=protocol, plan=plan, new_policy=policy)


def _protocol(project: Project, last: Round | None) -> Protocol:
    """The newest version of what the last round asked."""
    protocols = project.protocols.order_by("-version")
    if last is not None:
        protocols = protocols.filter(kind=last.protocol.kind)
    protocol = protocols.first()
    if protocol is None:
        raise NoNextRound("the project has no protocol. Create a round by hand once.")
    return protocol


def _plan(project: Project, last: Round | None) -> rounds.RoundPlan:
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
    if plan.gate_prompts > 0:
        return plan
    train, gate = with_gate(train=plan.train_prompts, test=plan.test_prompts, held_out=held_out)
    return dataclasses.replace(plan, train_prompts=train, gate_prompts=gate)


def with_gate(*, train: int, test: int, held_out: int) -> tuple[int, int]:
    """Prompts for training and for the gate, out of the same number of tasks as before.

    >>> with_gate(train=180, test=20, held_out=100)
    (140, 40)
    >>> with_gate(train=180, test=20, held_out=30)
    (150, 30)
    """
    gate = min(round(GATE_SHARE * (train + test)), held_out, max(0, train - 1))
    return train - gate, gate
