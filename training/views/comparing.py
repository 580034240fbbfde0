"""How far people have come with a candidate: the round that compares it, and its judgements so far."""

from dataclasses import dataclass

from django.db.models import F

from labeling.models import Assignment, Policy, Round, Task

DONE = Assignment.State.DONE


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """A round under way that decides about a policy when it closes. `wanted` is 0 before it opens."""

    round: Round
    done: int
    wanted: int


def comparing(policy: Policy) -> Comparing | None:
    """The newest round that pits this policy against the one before it; None when no round does."""
    round = (
        Round.objects.filter(new_policy=policy)
        .exclude(state=Round.State.CLOSED)
        .exclude(new_policy=F("old_policy"))
        .select_related("old_policy")
        .order_by("-number")
        .first()
    )
    if round is None:
        return None
    judgements = Assignment.objects.filter(round=round, task__purpose=Task.Purpose.GATE)
    wanted = judgements.count()
    if not wanted and round.state == Round.State.OPEN:
        return None  # all its tasks are for training: it asks nothing of the gate
    return Comparing(round=round, done=judgements.filter(state=DONE).count(), wanted=wanted)
