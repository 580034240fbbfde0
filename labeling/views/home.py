"""The start: rounds to judge, projects to manage."""

from dataclasses import dataclass

from django.contrib.auth.decorators import login_required
from django.db.models import Count, OuterRef, Q, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from labeling.models import Project, RaterProgress, Round
from labeling.views.judge import RaterRequest


@dataclass(frozen=True)
class RoundToJudge:
    round: Round
    mine: int
    done: int

    @property
    def is_full(self) -> bool:
        """Every label is there, though the round has not been closed."""
        return self.round.wanted > 0 and self.done >= self.round.wanted


@login_required
@require_GET
def home(request: RaterRequest) -> HttpResponse:
    managed = Project.objects.managed_by(request.user)
    context = {
        "to_judge": _rounds_to_judge(request),
        "managed": managed.select_related("current_policy").annotate(
            open_rounds=Count("rounds", filter=Q(rounds__state=Round.State.OPEN), distinct=True),
            waiting_rounds=Count("rounds", filter=Q(rounds__state=Round.State.WAITING), distinct=True),
        ),
        "belongs": Project.objects.visible_to(request.user).exists(),
    }
    return render(request, "labeling/home.html", context)


def _rounds_to_judge(request: RaterRequest) -> list[RoundToJudge]:
    """Open rounds of the user's projects, with one row of progress for each rater to add up."""
    of_round = RaterProgress.objects.filter(round=OuterRef("pk"))
    mine = of_round.filter(rater=request.user).values("labels")
    done = of_round.order_by().values("round").annotate(total=Sum("labels")).values("total")
    rounds = (
        Round.objects.visible_to(request.user)
        .filter(state=Round.State.OPEN)
        .select_related("project", "protocol")
        .annotate(mine=Coalesce(Subquery(mine), 0), done=Coalesce(Subquery(done), 0))
        .order_by("project__name", "number")
    )
    return [RoundToJudge(round, round.mine, round.done) for round in rounds]
