"""What is left of an open round, who holds a piece of it, and whether its people are enough. Reads only."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count
from django.utils import timezone

from labeling.models import Assignment, Membership, RaterProgress, Round, Task


@dataclass(frozen=True)
class Hand:
    """A rater with a task on the screen."""

    name: str
    until: datetime

    @property
    def is_late(self) -> bool:
        return self.until < timezone.now()


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """Tasks that want more different raters than there are."""

    tasks: int
    wanted: int  # raters, for the most demanding of these tasks
    is_up_to: bool  # others of them want fewer
    people: int


@dataclass(frozen=True, kw_only=True)
class Remaining:
    labels: int  # still wanted
    hands: list[Hand]
    shortage: Shortage | None
    out_of_reach: int  # labels that nobody is left to give

    @property
    def is_full(self) -> bool:
        return self.labels <= 0

    @property
    def is_all_out(self) -> bool:
        """Nothing is there to take: the rest is on screens, or wants raters whom the project has not."""
        return self.labels - self.out_of_reach <= len(self.hands)


def remaining(round: Round, *, done: int) -> Remaining:
    """For an open round with `done` labels: two small queries, one over its tasks when raters are short."""
    leases = Assignment.objects.filter(round=round, state=Assignment.State.LEASED).order_by("leased_until")
    held = leases.values_list("rater__username", "leased_until")
    hands = [Hand(name, until) for name, until in held if until]  # a lease has an end: the table sees to it
    each = _labels_each(round)
    people = _people(round)
    labels = round.wanted - done
    if labels <= 0 or people >= max(each.values()):
        return Remaining(labels=labels, hands=hands, shortage=None, out_of_reach=0)
    tasks = Task.objects.filter(round=round).values_list("purpose").annotate(n=Count("pk")).order_by()
    short = {purpose: n for purpose, n in tasks if each[purpose] > people}
    if not short:
        return Remaining(labels=labels, hands=hands, shortage=None, out_of_reach=0)
    wanted = {each[purpose] for purpose in short}
    return Remaining(
        labels=labels,
        hands=hands,
        shortage=Shortage(
            tasks=sum(short.values()), wanted=max(wanted), is_up_to=len(wanted) > 1, people=people
        ),
        out_of_reach=sum(n * (each[purpose] - people) for purpose, n in short.items()),
    )


def _labels_each(round: Round) -> dict[str, int]:
    """Labels that a task wants, by its purpose."""
    train = round.plan.get("overlap", round.overlap)
    held_out = round.plan.get("test_overlap", train)
    return {Task.Purpose.TRAIN: train, Task.Purpose.TEST: held_out, Task.Purpose.GATE: held_out}


def _people(round: Round) -> int:
    """Raters of the project, and whoever else has judged in the round: a manager, somebody who left."""
    raters = Membership.objects.filter(
        project=round.project_id, role=Membership.Role.RATER, user__is_active=True
    )
    judged = RaterProgress.objects.filter(round=round, labels__gt=0)
    return raters.values("user").order_by().union(judged.values("rater").order_by()).count()
