"""A manager's pages of a project itself: make one, and say what it is, who belongs to it, and who writes."""

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required, permission_required
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.forms.projects import (
    DetailsForm,
    GuidelinesForm,
    HeldOutForm,
    MemberForm,
    NewProjectForm,
    PolicyForm,
    ProtocolForm,
    asked_so_far,
)
from labeling.models import Membership, Project, Protocol
from labeling.policies import choose_policy, starter_folder
from labeling.projects import (
    LastManager,
    PromptsExist,
    create_project,
    remove_member,
    set_member,
    set_test_percent,
)
from labeling.protocols import version_of
from labeling.rendering import render_markdown


class ManagerRequest(HttpRequest):
    user: User


@login_required
@permission_required("labeling.add_project", raise_exception=True)
@require_http_methods(["GET", "HEAD", "POST"])
def project_new(request: ManagerRequest) -> HttpResponse:
    posted = request.method == "POST"
    form = NewProjectForm(request.POST if posted else None, allow_none=True)
    if posted and form.is_valid():
        made = create_project(
            name=form.cleaned_data["name"],
            guidelines=form.cleaned_data["guidelines"],
            test_percent=form.cleaned_data["test_percent"],
            location=form.cleaned_data["location"],
            created_by=request.user,
        )
        messages.success(request, f"{made} is there. Next: the people who rate, and prompts.")
        return redirect("project_settings", made.slug)
    return render(request, "labeling/project_new.html", {"form": form}, status=422 if form.errors else 200)


@login_required
@require_safe
def project_settings(request: ManagerRequest, slug: str) -> HttpResponse:
    return _page(request, _project(request, slug))


@login_required
@require_POST
def project_details(request: ManagerRequest, slug: str) -> HttpResponse:
    project = _project(request, slug)
    form = DetailsForm(request.POST, instance=project)
    if not form.is_valid():
        return _page(request, _project(request, slug), details=form)
    project.save(update_fields=["name", "guidelines"])
    return _saved(request, project, "Name and guidelines are saved. Raters see them with their next task.")


@login_required
@require_POST
def project_policy(request: ManagerRequest, slug: str) -> HttpResponse:
    project = _project(request, slug)
    form = PolicyForm(request.POST, project=project)
    if not form.is_valid():
        return _page(request, project, policy=form)
    policy = choose_policy(project=project, location=form.cleaned_data["location"])
    return _saved(request, project, f"{policy} is the current policy now.")


@login_required
@require_POST
def project_protocol(request: ManagerRequest, slug: str, kind: str) -> HttpResponse:
    project = _project(request, slug)
    if kind not in Protocol.Kind.values:
        raise Http404(f"There is no protocol of the kind {kind}.")
    form = ProtocolForm(request.POST, kind=kind)
    if not form.is_valid():
        return _page(request, project, protocol=form)
    protocol = version_of(
        project=project, kind=kind, question=form.cleaned_data["question"], options=form.options
    )
    return _saved(request, project, f"Saved as {protocol}. Rounds that are made from now on ask this.")


@login_required
@require_POST
def project_held_out(request: ManagerRequest, slug: str) -> HttpResponse:
    project = _project(request, slug)
    form = HeldOutForm(request.POST)
    if not form.is_valid():
        return _page(request, project, held_out=form)
    try:
        set_test_percent(project=project, test_percent=form.cleaned_data["test_percent"])
    except PromptsExist as late:
        form.add_error("test_percent", str(late))
        return _page(request, project, held_out=form)
    return _saved(request, project, f"{project.test_percent} % of the prompts will be held out.")


@login_required
@require_POST
def member_set(request: ManagerRequest, slug: str) -> HttpResponse:
    """Let somebody in, or give a member another role."""
    project = _project(request, slug)
    form = MemberForm(request.POST)
    if not form.is_valid():
        return _page(request, project, member=form)
    user, role = form.cleaned_data["username"], form.cleaned_data["role"]
    try:
        set_member(project=project, user=user, role=role)
    except LastManager as refused:
        form.add_error("role", str(refused))
        return _page(request, project, member=form)
    return _saved(request, project, f"{user} is {role} of this project.")


@login_required
@require_POST
def member_remove(request: ManagerRequest, slug: str, pk: int) -> HttpResponse:
    project = _project(request, slug)
    member = get_object_or_404(
        project.memberships.select_related("user"), user__in=User.objects.filter(pk=pk)
    )
    try:
        remove_member(project=project, user=member.user)
    except LastManager as refused:
        messages.error(request, str(refused))
        return redirect("project_settings", project.slug)
    if member.user_id == request.user.pk and not request.user.is_superuser:
        messages.success(request, f"You left {project}.")
        return redirect("home")
    return _saved(request, project, f"{member.user} left the project. Their labels stay.")


@login_required
@require_POST
def guidelines_preview(request: ManagerRequest) -> HttpResponse:
    """The guidelines as raters will see them, while they are written. Stores nothing."""
    form = GuidelinesForm(request.POST)
    text = form.cleaned_data["guidelines"] if form.is_valid() else ""
    return render(request, "labeling/_guidelines.html", {"html": render_markdown(text)})


def _project(request: ManagerRequest, slug: str) -> Project:
    return get_object_or_404(
        Project.objects.managed_by(request.user).select_related("current_policy"), slug=slug
    )


def _saved(request: ManagerRequest, project: Project, message: str) -> HttpResponse:
    messages.success(request, message)
    return redirect("project_settings", project.slug)


def _page(request: ManagerRequest, project: Project, **bound: forms.BaseForm) -> HttpResponse:
    """All the forms of the settings; `bound` is the one that was refused."""
    protocol = bound.get("protocol")
    kind = protocol.kind if isinstance(protocol, ProtocolForm) else _kind_asked(request, project)
    context: dict[str, Any] = {
        "project": project,
        "details": DetailsForm(instance=project),
        "policy": PolicyForm(initial=_policy_now(project)),
        "held_out": HeldOutForm(initial={"test_percent": project.test_percent}),
        "member": MemberForm(),
        "protocol": ProtocolForm(kind=kind, initial=asked_so_far(project, kind)),
        **bound,
        "kind": Protocol.Kind(kind),
        "kinds": Protocol.Kind,
        "latest": project.protocols.order_by("-version").first(),
        "members": project.memberships.select_related("user").order_by("role", "user__username"),
        "roles": Membership.Role,
        "guidelines_html": render_markdown(project.guidelines),
        "prompts": project.prompts.count(),
    }
    return render(request, "labeling/project_settings.html", context, status=422 if bound else 200)


def _kind_asked(request: HttpRequest, project: Project) -> str:
    """The kind that the address names; else that of the newest version; else comparison."""
    asked = request.GET.get("kind", "")
    if asked in Protocol.Kind.values:
        return asked
    newest = project.protocols.order_by("-version").first()
    return newest.kind if newest else Protocol.Kind.COMPARISON


def _policy_now(project: Project) -> dict[str, str]:
    policy = project.current_policy
    if policy is None or not policy.location:
        return {}
    if policy.location == str(starter_folder()):
        return {"source": "starter"}
    return {"source": "other", "location": policy.location}
