"""The policy page: where it comes from, what it writes, what people think of it, and the override."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import content_disposition_header
from django.views.decorators.http import require_POST, require_safe

from labeling.models import Policy, Project
from training import exports, gate
from training.forms.promotion import PromoteForm
from training.prompted import was_bare, weights_of
from training.views import evaluations
from training.views.comparing import comparing
from training.views.prompt_parts import shown_of
from training.views.samples import samples_of
from training.views.story import artifact_of
from training.views.verdicts import verdicts


@login_required
@require_safe
def policy(request: HttpRequest, policy_id: int) -> HttpResponse:
    return _page(request, _policy_of(request, policy_id), PromoteForm())


@login_required
@require_POST
def policy_promote(request: HttpRequest, policy_id: int) -> HttpResponse:
    found = _policy_of(request, policy_id)
    form = PromoteForm(request.POST)
    if not form.is_valid():
        return _page(request, found, form, status=422)
    assert request.user.is_authenticated
    try:
        gate.promote(policy=found, by=request.user, reason=form.cleaned_data["reason"])
    except gate.PromotionRefused as refusal:
        form.add_error(None, str(refusal))
        return _page(request, found, form, status=409)
    messages.success(request, f"{found} is the current policy now.")
    return redirect("policy", found.pk)


@login_required
@require_safe
def policy_export(request: HttpRequest, policy_id: int, part: str) -> StreamingHttpResponse:
    """The model, or its adapter, as one archive that is packed while it is sent."""
    found = _policy_of(request, policy_id)
    artifact = artifact_of(found) or weights_of(found)
    if artifact is None:
        raise Http404("This policy was not trained here.")
    try:
        made = exports.export(artifact, part, policy=found)
    except exports.NothingToExport as nothing:
        raise Http404(str(nothing)) from nothing
    response = StreamingHttpResponse(made.content, content_type="application/zip")
    response["Content-Disposition"] = content_disposition_header(True, f"{made.name}.zip") or ""
    return response


def _policy_of(request: HttpRequest, policy_id: int) -> Policy:
    return get_object_or_404(
        Policy.objects.filter(project__in=Project.objects.managed_by(request.user)).select_related(
            "project__current_policy", "parent", "artifact__run__dataset", "artifact__run__policy"
        ),
        pk=policy_id,
    )


def _page(request: HttpRequest, found: Policy, form: PromoteForm, status: int = 200) -> HttpResponse:
    artifact = artifact_of(found)
    weights = artifact or weights_of(found)
    decisions = found.gate_decisions.select_related("against", "round", "decided_by").order_by("-pk")
    is_current = found.project.current_policy_id == found.pk
    return render(
        request,
        "training/policy.html",
        {
            "project": found.project,
            "policy": found,
            "artifact": artifact,
            "exported": exports.parts_of(weights) if weights else [],
            "parts": shown_of(found),
            "lineage": artifact.lineage if artifact else {},
            "figures": evaluations.policy_figures(artifact.run.evaluation) if artifact else None,
            "verdicts": verdicts(artifact.run.evaluation, artifact) if artifact else None,
            "evaluation_error": evaluations.evaluation_error(artifact.run.evaluation) if artifact else None,
            "decisions": decisions,
            "comparing": comparing(found),
            "measured": next((d for d in decisions if d.win_rate is not None), None),
            "was_bare": artifact is not None and was_bare(artifact.run),
            "samples": samples_of(artifact.run) if artifact else [],
            "is_current": is_current,
            "can_be_promoted": bool(found.location) and not is_current,
            "form": form,
        },
        status=status,
    )
