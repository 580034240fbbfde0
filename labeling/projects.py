"""Projects: make one, say who belongs to it, change what it holds out."""

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.text import slugify

from labeling.models import Membership, Project
from labeling.policies import choose_policy

# /projects/new/ makes a project.
RESERVED_SLUGS = {"new"}


class LastManager(Exception):
    """A project keeps at least one manager."""


class PromptsExist(Exception):
    """The held-out share is fixed once there are prompts: each of them has its side for ever."""


@transaction.atomic
def create_project(
    *,
    name: str,
    guidelines: str = "",
    test_percent: int = 10,
    location: str | None = None,
    created_by: User | None = None,
) -> Project:
    """Make a project; its maker manages it. `location` is where its policy is: see labeling.policies."""
    project = Project.objects.create(
        name=name, slug=_free_slug(name), guidelines=guidelines, test_percent=test_percent
    )
    if created_by is not None:
        Membership.objects.create(project=project, user=created_by, role=Membership.Role.MANAGER)
    if location:
        choose_policy(project=project, location=location)
    return project


def _free_slug(name: str) -> str:
    slug = slugify(name)[:120] or "project"
    taken = set(Project.objects.filter(slug__startswith=slug).values_list("slug", flat=True)) | RESERVED_SLUGS
    slugs = [slug, *(f"{slug}-{number}" for number in range(2, len(taken) + 3))]
    return next(one for one in slugs if one not in taken)


@transaction.atomic
def set_member(*, project: Project, user: User, role: str) -> None:
    """Let somebody into the project, or give them another role. Raise LastManager when none would be left."""
    _keep_a_manager(project, without=user if role != Membership.Role.MANAGER else None)
    Membership.objects.update_or_create(project=project, user=user, defaults={"role": role})


@transaction.atomic
def remove_member(*, project: Project, user: User) -> None:
    """Shut somebody out. Their labels stay and count. Raise LastManager when no manager would be left."""
    _keep_a_manager(project, without=user)
    Membership.objects.filter(project=project, user=user).delete()


def _keep_a_manager(project: Project, *, without: User | None) -> None:
    # The lock makes two managers who remove each other take turns.
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    managers = Membership.objects.filter(project=project, role=Membership.Role.MANAGER)
    if without is None or not managers.filter(user=without).exists():
        return
    if not managers.exclude(user=without).exists():
        raise LastManager("A project keeps at least one manager. Make somebody else a manager first.")


def set_test_percent(*, project: Project, test_percent: int) -> None:
    """Change the share of prompts that is held out. Raise PromptsExist when it is too late for that."""
    with transaction.atomic():
        locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        if locked.prompts.exists():
            raise PromptsExist("There are prompts already, and each one keeps its side for ever.")
        locked.test_percent = project.test_percent = test_percent
        locked.save(update_fields=["test_percent"])
