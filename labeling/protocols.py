"""Which version of the protocol a round asks under: the latest when nothing changed, else a new one."""

from typing import Any

from django.db import transaction
from django.db.models import Max

from labeling.models import Project, Protocol


@transaction.atomic
def version_of(*, project: Project, kind: str, question: str, options: dict[str, Any]) -> Protocol:
    """A version of the project's protocol that asks just this. A protocol is never edited."""
    # The lock keeps two managers from taking the same number.
    locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    versions = Protocol.objects.filter(project=locked)
    same = [
        protocol
        for protocol in versions.filter(kind=kind, question=question).order_by("-version")
        if protocol.options == options
    ]
    if same:
        return same[0]
    last = versions.aggregate(last=Max("version"))["last"] or 0
    return Protocol.objects.create(
        project=locked, version=last + 1, kind=kind, question=question, options=options
    )
