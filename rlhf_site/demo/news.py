"""What whoever started the demo reads at the console: what runs do and which rounds open, in all projects."""

from django.db import InterfaceError, OperationalError
from django.db.models import QuerySet

from labeling.models import Round
from training.models import Run

OVER = (Run.State.COMPLETE, Run.State.CANCELLED, Run.State.FAILED, Run.State.REFUSED)


class News:
    """What was over when it is made is no news."""

    def __init__(self) -> None:
        self._runs = {run.pk: _line(run) for run in _all_runs().filter(state__in=OVER)}
        self._open: set[int] = set()

    def since_last_time(self) -> list[str]:
        """Nothing while the database is busy: it is told the next time."""
        try:
            runs = {run.pk: _line(run) for run in _all_runs()}
            rounds = list(
                Round.objects.filter(state=Round.State.OPEN).select_related("project").order_by("pk")
            )
        except (OperationalError, InterfaceError):
            return []
        news = [line for pk, line in runs.items() if self._runs.get(pk) != line]
        news += [
            f"{current.project}: {current} is open, raters can judge"
            for current in rounds
            if current.pk not in self._open
        ]
        self._runs, self._open = runs, {current.pk for current in rounds}
        return news


def _all_runs() -> QuerySet[Run]:
    columns = ("pk", "method", "state", "message", "project__name")
    return Run.objects.select_related("project").only(*columns).order_by("pk")


def _line(run: Run) -> str:
    told = f", {run.message}" if run.message else ""
    return f"{run.project}: {run}: {run.get_state_display().lower()}{told}"
