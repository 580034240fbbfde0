"""Prompting as a policy: a variant of a policy under other parts, and policies that a server writes for."""

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from labeling.model_servers import add_served
from labeling.models import Policy, Project
from labeling.policies import PolicyRefused
from labeling.prompting import make_prompted
from training.forms.prompting import PromptForm, ServedForm
from training.prompted import prompt_version


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def policy_prompt(request: HttpRequest, policy_id: int) -> HttpResponse:
    """Write another system prompt or other examples; they are saved as a new policy."""
    found = get_object_or_404(
        Policy.objects.filter(project__in=Project.objects.managed_by(request.user)).select_related("project"),
        pk=policy_id,
    )
    if "more" in request.POST:
        form = PromptForm(policy=found, given=request.POST.dict())
    else:
        form = PromptForm(request.POST if request.method == "POST" else None, policy=found)
    if form.is_bound and form.is_valid():
        try:
            made = make_prompted(
                policy=found,
                system_prompt=form.cleaned_data["system_prompt"],
                examples=form.examples,
                name=form.cleaned_data["name"],
            )
        except PolicyRefused as refusal:
            form.add_error(None, str(refusal))
        else:
            messages.success(request, f"{made} is a candidate now. A round compares it with other policies.")
            return redirect("policy", made.pk)
    context = {"project": found.project, "policy": found, "form": form, "version": prompt_version(found)}
    return render(request, "training/policy_prompt.html", context, status=422 if form.errors else 200)


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def policy_served(request: HttpRequest, slug: str) -> HttpResponse:
    """Add a policy whose model a server keeps."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    form = ServedForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            made = add_served(project=project, **form.cleaned_data)
        except PolicyRefused as refusal:
            form.add_error(None, str(refusal))
        else:
            messages.success(request, f"{made} is a candidate now. A round asks its server for completions.")
            return redirect("policy", made.pk)
    context = {"project": project, "form": form, "has_servers": bool(settings.MODEL_SERVERS)}
    return render(request, "training/policy_served.html", context, status=422 if form.errors else 200)
