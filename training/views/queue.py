"""What a queued run waits behind, in a sentence."""

from django.db.models.functions import Now

from training.models import Run


def waits_behind(run: Run) -> str:
    """Empty unless the run is queued. Of other projects only that they have a run is told."""
    if run.state != Run.State.QUEUED:
        return ""
    working = list(Run.objects.filter(state=Run.State.RUNNING, leased_until__gte=Now()).order_by("pk"))
    queue = list(Run.objects.waiting_for_a_device().values_list("pk", flat=True))
    before = queue.index(run.pk) if run.pk in queue else 0
    more = f"{before} more before it" if before else "it is next"
    if not working:
        return f"The device is free; {more}."
    names = " and ".join(_name(other, run) for other in working)
    where = "is on the device" if len(working) == 1 else "are on the devices"
    return f"{names[0].upper()}{names[1:]} {where}; {more}."


def _name(other: Run, run: Run) -> str:
    return f"run {other.pk}" if other.project_id == run.project_id else "a run of another project"
