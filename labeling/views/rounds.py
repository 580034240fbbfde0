"""A manager's pages of a round: make one, watch it, close it, open it again."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.cache import cache
from django.db import transaction
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from django_htmx.middleware import HtmxDetails

from labeling import rounds
from labeling.forms.rounds import RoundForm, available_prompts
from labeling.gate_report import GateReport, gate_of, verdict
from labeling.models import Project, Protocol, Round, RoundNotReady, Task
from labeling.protocols import version_of
from labeling.remaining import remaining
from labeling.round_report import IdentityFlag, RoundReport, identity_flags, report_of
from labeling.views.bars import chart_of
from labeling.views.intervals import interval_of

REPORT_SECONDS = 30  # how old a report may be when no label was added
FLAGS_SECONDS = 3_600  # the texts of a round never change
PURPOSES = {
    Task.Purpose.TRAIN: "to train on",
    Task.Purpose.TEST: "held out",
    Task.Purpose.GATE: "for the gate",
}

T = TypeVar("T")


class ManagerRequest(HttpRequest):
    htmx: HtmxDetails


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def round_new(request: ManagerRequest, slug: str) -> HttpResponse:
    project = get_object_or_404(
        Project.objects.managed_by(request.user).select_related("current_policy"), slug=slug
    )
    kind = _kind_asked(request, project)
    form = RoundForm(request.POST or None, project=project, kind=kind)
    if request.method == "POST" and form.is_valid():
        try:
            return redirect("round", _made(form).pk)
        except (rounds.InvalidPlan, RoundNotReady) as refusal:
            form.add_error(None, str(refusal))
    context = {
        "project": project,
        "form": form,
        "kind": Protocol.Kind(kind),
        "kinds": Protocol.Kind,
        "available": available_prompts(project),
    }
    return render(request, "labeling/round_new.html", context, status=422 if form.errors else 200)


@transaction.atomic
def _made(form: RoundForm) -> Round:
    """The round, under the version of the protocol that asks what the form says; or neither."""
    protocol = version_of(
        project=form.project, kind=form.kind, question=form.cleaned_data["question"], options=form.options
    )
    return rounds.create_round(
        project=form.project,
        protocol=protocol,
        plan=form.plan,
        new_policy=form.cleaned_data.get("new_policy"),
        against=form.cleaned_data.get("against") if form.cleaned_data.get("new_policy") else None,
    )


def _kind_asked(request: HttpRequest, project: Project) -> str:
    """The kind that the address names; else that of the latest round; else comparison."""
    asked = request.GET.get("kind", "")
    if asked in Protocol.Kind.values:
        return asked
    last = project.rounds.order_by("-number").select_related("protocol").first()
    return last.protocol.kind if last else Protocol.Kind.COMPARISON


@never_cache
@login_required
@require_safe
def round(request: ManagerRequest, pk: int) -> HttpResponse:
    """The page; for htmx the part that moves, or a reload when the round's state is no longer that shown."""
    found = _round_of(request, pk)
    if request.htmx:
        response = render(request, "labeling/_round_live.html", _live_context(found))
        if request.GET.get("state") != found.state:
            response["HX-Refresh"] = "true"
        return response
    return render(request, "labeling/round.html", {**_live_context(found), **_page_context(found)})


@login_required
@require_POST
def round_close(request: ManagerRequest, pk: int) -> HttpResponse:
    found = _round_of(request, pk)
    was_open = found.state == Round.State.OPEN
    rounds.close_round(found)
    # Read again: what its closing decided about a policy is stored by now.
    messages.success(request, _closed_message(_round_of(request, pk), was_open=was_open))
    return redirect("round", pk)


def _closed_message(found: Round, *, was_open: bool) -> str:
    if not found.wanted:
        return f"{found} is given up: it had no tasks yet."
    message = f"{found} is closed. Its labels can be frozen into a dataset now."
    gate = gate_of(found) if was_open else None
    return f"{message} {verdict(found, gate)}" if gate else message


@login_required
@require_POST
def round_reopen(request: ManagerRequest, pk: int) -> HttpResponse:
    found = _round_of(request, pk)
    try:
        rounds.reopen_round(found)
        messages.success(request, f"{found} is open again.")
    except RoundNotReady as refusal:
        messages.error(request, str(refusal))
    return redirect("round", pk)


def _round_of(request: ManagerRequest, pk: int) -> Round:
    return get_object_or_404(
        Round.objects.managed_by(request.user).select_related(
            "project__current_policy", "protocol", "old_policy", "new_policy"
        ),
        pk=pk,
    )


def _live_context(found: Round) -> dict[str, Any]:
    progress = rounds.progress(found)
    report = _report(found, done=progress.done)
    raters = [(rater, progress.by_rater.get(rater.name, rater.labels)) for rater in report.raters]
    return {
        "project": found.project,
        "round": found,
        "progress": progress,
        "report": report,
        "raters": sorted(raters, key=lambda entry: -entry[1]),
        "charts": [chart_of(question) for question in report.questions] if report.looked_at else [],
        "left": remaining(found, done=progress.done) if found.state == Round.State.OPEN else None,
        "is_live": found.state != Round.State.CLOSED,
        **_gate_context(found, done=progress.done),
    }


def _gate_context(found: Round, *, done: int) -> dict[str, Any]:
    gate = _gate(found, done=done)
    if gate is None:
        return {}
    return {
        "gate": gate,
        "verdict": verdict(found, gate) if found.state == Round.State.CLOSED else "",
        "interval": interval_of(gate.win) if gate.win else None,
    }


def _gate(found: Round, *, done: int) -> GateReport | None:
    return _kept(f"round-gate-{found.pk}-{found.state}-{done}", partial(gate_of, found))


def _report(found: Round, *, done: int) -> RoundReport:
    return _kept(f"round-report-{found.pk}-{done}", partial(report_of, found))


def _kept(key: str, make: Callable[[], T], seconds: int = REPORT_SECONDS) -> T:
    """What the key names: several managers' pages that refresh ask the database once."""
    found: T | None = cache.get(key)
    if found is None:
        found = make()
        cache.set(key, found, seconds)
    return found


def _page_context(found: Round) -> dict[str, Any]:
    counts = dict(Task.objects.filter(round=found).values_list("purpose").annotate(n=Count("pk")).order_by())
    return {
        "is_planned": not counts,
        "purposes": [
            (label, count)
            for purpose, label in PURPOSES.items()
            if (count := counts.get(purpose, 0) if counts else found.plan.get(f"{purpose}_prompts", 0))
        ],
        "flags": _flags(found),
        "datasets": found.datasets.all(),
    }


def _flags(found: Round) -> list[IdentityFlag]:
    if found.state == Round.State.WAITING:
        return []
    return _kept(f"round-identity-{found.pk}", partial(identity_flags, found), FLAGS_SECONDS)
