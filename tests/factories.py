"""Plain functions that make what a test needs."""

from django.contrib.auth.models import User

from labeling.models import Membership, Policy, Project, Protocol

PASSWORD = "correct horse battery"

OPTIONS = {
    "rating": {"criteria": [{"key": "overall", "name": "Overall", "help": ""}], "low": 1, "high": 5},
    "comparison": {"strengths": 4, "tie": True, "both_bad": True},
    "ranking": {"ties": True, "partial": True},
}


def make_project(name: str = "Stories") -> Project:
    return Project.objects.create(
        name=name, slug=name.lower().replace(" ", "-"), guidelines="Prefer the **kind** one."
    )


def make_user(name: str, project: Project | None = None, role: str = Membership.Role.RATER) -> User:
    user = User.objects.create_user(name, password=PASSWORD)
    if project is not None:
        Membership.objects.create(project=project, user=user, role=role)
    return user


def make_protocol(project: Project, kind: str = "comparison") -> Protocol:
    version = project.protocols.count() + 1
    return Protocol.objects.create(
        project=project, version=version, kind=kind, question="Which is better?", options=OPTIONS[kind]
    )


def make_policy(project: Project, name: str = "starter", state: str = Policy.State.PROMOTED) -> Policy:
    return Policy.objects.create(project=project, name=name, state=state)
