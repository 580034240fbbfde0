"""A manager puts a sample of an AI's pairs before people."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from labeling import audits, datasets
from labeling.forms.audits import AuditForm
from labeling.models import PreferenceDataset, RoundNotReady
from labeling.rounds import InvalidPlan
from labeling.views.datasets import ai_context, page_of


@login_required
@require_POST
def audit_new(request: HttpRequest, pk: int) -> HttpResponse:
    managed = PreferenceDataset.objects.managed_by(request.user).select_related("project")
    found = get_object_or_404(managed, pk=pk)
    form = AuditForm(request.POST)
    if form.is_valid():
        try:
            round = audits.open_audit(dataset=found, **form.cleaned_data)
        except (audits.AuditRefused, datasets.DamagedDataset, InvalidPlan, RoundNotReady) as refused:
            form.add_error(None, str(refused))
        else:
            messages.success(request, f"{round} is open. What the AI said of its pairs is not shown there.")
            return redirect("round", round.pk)
    context = {**page_of(found), **ai_context(found, form)}
    return render(request, "labeling/dataset.html", context, status=422)
