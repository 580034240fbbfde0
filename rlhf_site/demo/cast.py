"""What the demo starts with: a database, three people, a project with prompts, and a first round."""

import secrets
from dataclasses import dataclass

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import transaction

from labeling import policies, prompts, rounds
from labeling.models import Membership, Policy, Project, Protocol, Round
from training.rlhf.starter import world

PROJECT = "Kind stories"
GUIDELINES = """\
Somebody asked for a short story. Which one would you rather read to a child?

- **On topic**: both the creature and the thing that were asked for are in it.
- **Kind**: the deeds in it are kind ones.
- **Whole**: it comes to an ending instead of stopping halfway.
- A story that says everything once is better than one that goes on and on.

When two are about equally good, say so: a tie is an answer.
"""
PROMPTS = 3000
CAST = {"mia": Membership.Role.MANAGER, "ann": Membership.Role.RATER, "bo": Membership.Role.RATER}


@dataclass(frozen=True)
class Cast:
    project: Project
    passwords: dict[str, str]  # of the people made just now; empty when they were there


def prepare_installation() -> None:
    """Bring the database and the static files to this version of the code."""
    call_command("migrate", verbosity=0, interactive=False)
    call_command("collectstatic", verbosity=0, interactive=False)


@transaction.atomic
def make_cast(*, plan: rounds.RoundPlan, seed: int) -> Cast:
    """Make the demo project with its people and first round, or return what is there already."""
    existing = Project.objects.filter(name=PROJECT).first()
    if existing is not None:
        return Cast(project=existing, passwords={})
    project = Project.objects.create(
        name=PROJECT, slug="kind-stories", guidelines=GUIDELINES, test_percent=12
    )
    passwords = {name: secrets.token_urlsafe(9) for name in CAST}
    for name, role in CAST.items():
        add_person(project, name, passwords[name], role)
    starter = Policy.objects.create(
        project=project, name="starter", state=Policy.State.PROMOTED, location=str(policies.starter_folder())
    )
    project.current_policy = starter
    project.save(update_fields=["current_policy"])
    asked = world.prompts(PROMPTS, seed=seed)
    prompts.add_prompts(
        project=project, conversations=[[{"role": "user", "content": text}] for text in asked]
    )
    first_round(project, plan)
    return Cast(project=project, passwords=passwords)


def add_person(project: Project, name: str, password: str, role: str) -> User:
    """Make a person who belongs to the project; somebody of that name who is there keeps their password."""
    user = User.objects.filter(username=name).first()
    if user is None:
        user = User.objects.create_user(name, password=password)
    Membership.objects.get_or_create(project=project, user=user, defaults={"role": role})
    if role == Membership.Role.MANAGER:
        user.user_permissions.add(Permission.objects.get(codename="add_project"))
    return user


def first_round(project: Project, plan: rounds.RoundPlan) -> Round:
    protocol = Protocol.objects.create(
        project=project,
        version=1,
        kind=Protocol.Kind.COMPARISON,
        question="Which story is better?",
        options={"strengths": 4, "tie": True, "both_bad": True},
    )
    return rounds.create_round(project=project, protocol=protocol, plan=plan)
