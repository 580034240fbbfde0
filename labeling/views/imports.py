"""Files come in: a manager uploads one, watches it being read, and sees what came of it."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe
from django_htmx.middleware import HtmxDetails

from labeling.forms.imports import ImportForm
from labeling.imports.background import mark_interrupted, start_import
from labeling.imports.recognise import Form
from labeling.models import Collection, Import, Project, Prompt, Round
from labeling.prompts import MAX_CHARACTERS

LISTED = 20  # earlier imports on the page


class ManagerRequest(HttpRequest):
    user: User
    htmx: HtmxDetails


@never_cache
@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def import_new(request: ManagerRequest, slug: str) -> HttpResponse:
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    posted = request.method == "POST"
    form = ImportForm(request.POST, request.FILES) if posted else ImportForm()
    if posted and form.is_valid():
        started = start_import(
            project=project,
            upload=form.cleaned_data["file"],
            form=form.cleaned_data["form"],
            keep_good=form.cleaned_data["keep_good"],
            created_by=request.user,
        )
        return redirect("import_report", started.pk)
    earlier = list(project.imports.select_related("created_by")[:LISTED])
    mark_interrupted(earlier)
    context = {
        "project": project,
        "form": form,
        "imports": earlier,
        "most_characters": MAX_CHARACTERS,
        "limit_mb": settings.IMPORT_MAX_BYTES // 1_000_000,
    }
    return render(request, "labeling/import_new.html", context, status=422 if form.errors else 200)


@never_cache
@login_required
@require_safe
def import_report(request: ManagerRequest, pk: int) -> HttpResponse:
    """The page; for htmx the part that moves."""
    found = get_object_or_404(
        Import.objects.managed_by(request.user).select_related("project", "created_by"), pk=pk
    )
    mark_interrupted([found])
    report = found.report
    context = {
        "project": found.project,
        "import": found,
        "report": report,
        "form": next((known.described for known in Form if known.value == found.form), ""),
        "round": Round.objects.filter(pk=report.get("round")).first() if report.get("round") else None,
        "collection": _collection_of(found),
        "more_refused": max(0, report.get("refused", 0) - len(report.get("refusals", []))),
        "took": _took(report.get("seconds", 0)),
        "held_out": _held_out(found),
        "nothing_new": found.state == Import.State.COMPLETE and not _created(report),
    }
    template = "labeling/_import.html" if request.htmx else "labeling/import.html"
    return render(request, template, context)


def _collection_of(found: Import) -> Collection | None:
    pk = found.report.get("collection")
    return Collection.objects.filter(project=found.project_id, pk=pk).first() if pk else None


def _took(seconds: float) -> str:
    """
    >>> _took(0.04), _took(1.2), _took(75)
    ('less than a second', '1 second', '1 min 15 s')
    """
    if seconds < 1:
        return "less than a second"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} second{'' if whole == 1 else 's'}"
    return f"{whole // 60} min {whole % 60} s"


def _held_out(found: Import) -> int | None:
    """How many of its new prompts are held out for testing; None when they cannot be told from others.

    Its prompts are those made while it was under way, unless something else made prompts meanwhile.
    """
    if found.state != Import.State.COMPLETE or found.finished_at is None:
        return None
    made = Prompt.objects.filter(
        project=found.project_id, created_at__range=(found.created_at, found.finished_at)
    )
    counts = dict(made.values_list("split").annotate(n=Count("pk")).order_by())
    if sum(counts.values()) != found.report["prompts"]["created"]:
        return None
    return counts.get(Prompt.Split.TEST, 0)


def _created(report: dict[str, dict[str, int]]) -> int:
    kinds = ("prompts", "completions", "comparisons", "rankings", "examples")
    return sum(report[kind]["created"] for kind in kinds if kind in report)  # old reports lack the last
