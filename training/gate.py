"""The gate: a policy takes over when people prefer it, or when a manager says why it should.

A candidate is promoted when the win rate that people gave it over the current policy, blind, on held-out
prompts, lies above one half with its whole interval. Until then it stays a candidate.
"""

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Exists, F, Max, OuterRef, Q
from django.utils import timezone

from labeling import agreement, datasets
from labeling.models import Policy, Project, Round, Task
from training.models import GateDecision

EVEN = 0.5
BOOTSTRAP_SEED = 0  # the same labels give the same interval


class PromotionRefused(Exception):
    """The policy cannot be promoted; the message says why."""


@transaction.atomic
def evaluate_gate(round: Round) -> GateDecision | None:
    """Decide by the labels of a closed round; None when the round asks nothing of the gate.

    Asked again after the same labels it returns the decision that is there. A round that was reopened and
    closed with other labels gets a second decision; what was promoted stays promoted.
    """
    project = _locked_project(round.project_id)
    round = Round.objects.select_for_update(no_key=True).get(pk=round.pk)
    new_policy_id = round.new_policy_id
    if new_policy_id is None or not _has_gate(round):
        return None
    outcomes = datasets.gate_outcomes(round)
    figures = agreement.win_rate(outcomes, seed=BOOTSTRAP_SEED)
    last = round.gate_decisions.filter(decided_by__isnull=True).last()
    found = (figures.rate, figures.low, figures.high, figures.n) if figures else (None, None, None, 0)
    if last is not None and (last.win_rate, last.low, last.high, last.labels) == found:
        _confirm(last, round)
        return last
    policy = Policy.objects.select_for_update(no_key=True).get(pk=new_policy_id)
    obstacle = _obstacle(policy, project, round, figures)
    decision = GateDecision.objects.create(
        policy=policy,
        against=round.old_policy,
        round=round,
        promoted=obstacle is None,
        win_rate=found[0],
        low=found[1],
        high=found[2],
        labels=found[3],
        reason=obstacle or "People prefer it: the interval of its win rate lies above one half.",
    )
    if decision.promoted:
        _put_in_place(policy, project)
    return decision


def _confirm(decision: GateDecision, round: Round) -> None:
    """A round closed again with the same labels: `evaluate_missing_gates` need not ask once more."""
    if round.closed_at is not None and decision.created_at < round.closed_at:
        decision.created_at = timezone.now()
        decision.save(update_fields=["created_at"])


def _locked_project(pk: int) -> Project:
    """Locked before its rounds and policies, as everywhere: nobody waits in a circle."""
    return Project.objects.select_for_update(no_key=True).get(pk=pk)


def _has_gate(round: Round) -> bool:
    return (
        round.state == Round.State.CLOSED
        and round.new_policy_id != round.old_policy_id
        and round.tasks.filter(purpose=Task.Purpose.GATE).exists()
    )


def _obstacle(
    policy: Policy, project: Project, round: Round, figures: agreement.WinRate | None
) -> str | None:
    """Why the labels do not promote the policy; None when they do."""
    if figures is None:
        return "Nobody compared it with the policy before it."
    if figures.low <= EVEN:
        return (
            f"The interval of its win rate, {figures.low:.2f} to {figures.high:.2f}, does not lie above "
            "one half: more labels may decide it, or a manager with a reason."
        )
    if project.current_policy_id not in (round.old_policy_id, policy.pk):
        return (
            f"It won against {round.old_policy}, but {project.current_policy} is the current policy, and "
            "stays it."
        )
    return None


@transaction.atomic
def promote(*, policy: Policy, by: User, reason: str) -> GateDecision:
    """Make it the current policy although, or before, the labels say so. The reason is kept."""
    reason = reason.strip()
    if not reason:
        raise PromotionRefused("Write down why: an override without a reason is not accepted.")
    project = _locked_project(policy.project_id)
    policy = Policy.objects.select_for_update(no_key=True).get(pk=policy.pk)
    if not policy.location:
        raise PromotionRefused(f"{policy} has no model: nothing could be sampled from it.")
    before = project.current_policy
    if before == policy:
        last = policy.gate_decisions.filter(promoted=True).last()
        if last is not None:
            return last  # a double click
        raise PromotionRefused(f"{policy} is the current policy already.")
    decision = GateDecision.objects.create(
        policy=policy, against=before, promoted=True, decided_by=by, reason=reason
    )
    _put_in_place(policy, project)
    return decision


def _put_in_place(policy: Policy, project: Project) -> None:
    policy.state = Policy.State.PROMOTED
    policy.save(update_fields=["state"])
    project.current_policy = policy
    project.save(update_fields=["current_policy"])


def evaluate_missing_gates() -> list[GateDecision]:
    """Decisions for rounds closed since the last one: the process that closed them died in between."""
    by_labels = Max("gate_decisions__created_at", filter=Q(gate_decisions__decided_by__isnull=True))
    undecided = (
        Round.objects.filter(Exists(Task.objects.filter(round=OuterRef("pk"), purpose=Task.Purpose.GATE)))
        .annotate(decided_at=by_labels)
        .filter(Q(decided_at__isnull=True) | Q(decided_at__lt=F("closed_at")), state=Round.State.CLOSED)
    )
    return [decision for round in undecided if (decision := evaluate_gate(round)) is not None]
