"""Where an import stands until it is whole: a project of its own, which nobody belongs to and no page lists.

A large file takes a minute to store, and on SQLite everybody's labels would wait for one transaction so long.
So it is stored in many short ones, out of sight, and moved into its project by a last one that only changes
to whom rows belong. What an import leaves that failed or was killed is never seen, and is deleted by whoever
looks next. Imports into one project take turns: a lock on a file, which the system releases with the process.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, Max, Model, OuterRef, QuerySet

from labeling.imports.items import UnreadableFile
from labeling.models import (
    Assignment,
    Collection,
    Completion,
    Example,
    Label,
    Policy,
    Project,
    Prompt,
    Protocol,
    RaterProgress,
    Round,
    Task,
    TaskItem,
)
from labeling.models.projects import HIDDEN
from labeling.protocols import version_of

log = logging.getLogger(__name__)

CHUNK = 2_000  # rows deleted together


@contextmanager
def staged(project: Project) -> Iterator[Project]:
    """A hidden project to store into; `publish` it within, or nothing of it stays."""
    with _turn(project, wait=True):
        _discard_leftovers(project)
        hidden = Project.objects.create(
            name=_slug(project), slug=_slug(project), test_percent=project.test_percent
        )
        try:
            yield hidden
        except BaseException:
            try:
                _discard(hidden)
            except Exception:  # a full disk, say: what is left is out of sight, and the first error counts
                log.exception("what an import into %s left could not be deleted yet", project)
            raise


def discard_leftovers(project: Project) -> None:
    """Delete what a killed import into the project left, unless another one is at work."""
    with suppress(BlockingIOError), _turn(project, wait=False):
        _discard_leftovers(project)


def publish(hidden: Project, *, into: Project) -> Round | None:
    """Move everything into the project, inside the caller's transaction; the round of its labels, if any."""
    project = Project.objects.select_for_update(no_key=True).get(pk=into.pk)
    if project.test_percent != hidden.test_percent:
        raise UnreadableFile("the share of held-out prompts was changed meanwhile; import the file again")
    _join_twins(hidden, project)
    Prompt.objects.filter(project=hidden).update(project=project)
    Collection.objects.filter(project=hidden).update(project=project)
    for policy in hidden.policies.all():
        _move_policy(policy, project)
    round = hidden.rounds.select_related("protocol").first()
    if round is not None:
        _move_round(round, project)
    hidden.protocols.all().delete()
    hidden.delete()
    return round


def _join_twins(hidden: Project, project: Project) -> None:
    """Prompts that came into the project meanwhile, by a sampler of prompts or through the API, stay."""
    theirs = Prompt.objects.filter(project=project, digest=OuterRef("digest"))
    for prompt in Prompt.objects.filter(Exists(theirs), project=hidden):
        twin = Prompt.objects.get(project=project, digest=prompt.digest)
        Completion.objects.filter(prompt=prompt).update(prompt=twin)
        Task.objects.filter(prompt=prompt).update(prompt=twin)
        Example.objects.filter(prompt=prompt).update(prompt=twin)
        prompt.delete()


def _move_policy(policy: Policy, project: Project) -> None:
    same = project.policies.filter(name=policy.name).first()
    if same is None:
        Policy.objects.filter(pk=policy.pk).update(project=project)
    else:
        Completion.objects.filter(policy=policy).update(policy=same)
        policy.delete()


def _move_round(round: Round, project: Project) -> None:
    """Under the version of the project's protocol that asks the same; the number is the next one."""
    asked = round.protocol
    protocol = _protocol_of(project, asked) or version_of(
        project=project, kind=asked.kind, question=asked.question, options=asked.options
    )
    Label.objects.filter(protocol=asked).update(protocol=protocol)
    last = project.rounds.aggregate(last=Max("number"))["last"] or 0
    round.project, round.protocol, round.number = project, protocol, last + 1
    round.save(update_fields=["project", "protocol", "number"])


def _protocol_of(project: Project, asked: Protocol) -> Protocol | None:
    """The newest version that allows what files say: importing does not change what raters are asked."""
    needed = {name: value for name, value in asked.options.items() if name != "both_bad"}.items()
    versions = project.protocols.filter(kind=asked.kind).order_by("-version")
    return next((version for version in versions if needed <= version.options.items()), None)


def _slug(project: Project) -> str:
    return f"{HIDDEN}import-into-{project.pk}"


@contextmanager
def _turn(project: Project, *, wait: bool) -> Iterator[None]:
    """Hold the project's lock; raise BlockingIOError when another process or thread has it."""
    path = Path(settings.VAR_DIR) / "locks" / f"import-into-{project.pk}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _discard_leftovers(project: Project) -> None:
    left = Project.objects.filter(slug=_slug(project)).first()
    if left is not None:
        _discard(left)


def _discard(hidden: Project) -> None:
    """Delete a hidden project with all it holds, in short transactions; again and again changes nothing."""
    assignments = Assignment.objects.filter(round__project=hidden)
    free = {"state": Assignment.State.WITHDRAWN, "label": None, "rater": None}
    for chunk in _chunks(assignments.filter(label__isnull=False)):
        Assignment.objects.filter(pk__in=chunk).update(**free)
    for rows in (
        Label.objects.filter(assignment__round__project=hidden),
        assignments,
        TaskItem.objects.filter(task__round__project=hidden),
        Task.objects.filter(round__project=hidden),
        RaterProgress.objects.filter(round__project=hidden),
        Round.objects.filter(project=hidden),
        Example.objects.filter(collection__project=hidden),
        Collection.objects.filter(project=hidden),
        Completion.objects.filter(policy__project=hidden),
        Policy.objects.filter(project=hidden),
        Prompt.objects.filter(project=hidden),
        Protocol.objects.filter(project=hidden),
    ):
        for chunk in _chunks(rows):
            with transaction.atomic():
                rows.model._default_manager.filter(pk__in=chunk).delete()
    Project.objects.filter(pk=hidden.pk).delete()


def _chunks(rows: QuerySet[Model]) -> Iterator[list[int]]:
    """Keys of rows that are there still; each chunk must be gone from `rows` before the next is asked for."""
    while chunk := list(rows.order_by("pk").values_list("pk", flat=True)[:CHUNK]):
        yield chunk
