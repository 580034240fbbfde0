"""A manager's pages of a preference dataset: freeze one, look at it, download it."""

import posixpath
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q, QuerySet
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import content_disposition_header
from django.utils.text import slugify
from django.views.decorators.http import require_http_methods, require_safe

from labeling import audits, datasets
from labeling.ai_agreement import SIDES, AiAgreement
from labeling.archives import zipped
from labeling.datasets.manifest import NAME as MANIFEST
from labeling.forms.audits import AuditForm
from labeling.forms.datasets import DatasetForm, free_name, rule_help
from labeling.models import PreferenceDataset, Project, Protocol, Round
from labeling.views.intervals import interval_of

CONTENT_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".parquet": "application/vnd.apache.parquet",
    ".arrow": "application/vnd.apache.arrow.stream",
}


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def dataset_new(request: HttpRequest, slug: str) -> HttpResponse:
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    closed = _closed_rounds(project)
    form = DatasetForm(
        request.POST if request.method == "POST" else None,
        project=project,
        rounds=closed,
        initial=_defaults(request, project, closed),
    )
    if request.method == "POST" and form.is_valid():
        try:
            made = datasets.freeze(
                project=project,
                rounds=list(form.cleaned_data["rounds"]),
                collections=list(form.cleaned_data["collections"]),
                rule=form.cleaned_data["rule"],
                name=form.cleaned_data["name"],
            )
            return redirect("dataset", made.pk)
        except datasets.FreezeError as refusal:
            form.add_error(None, str(refusal))
    context = {
        "project": project,
        "form": form,
        "has_rounds": closed.exists(),
        "unfinished": Round.objects.filter(project=project).exclude(state=Round.State.CLOSED),
    }
    return render(request, "labeling/dataset_new.html", context, status=422 if form.errors else 200)


def _closed_rounds(project: Project) -> QuerySet[Round]:
    return (
        Round.objects.filter(project=project, state=Round.State.CLOSED)
        .annotate(labels=Count("assignments", filter=Q(assignments__label__isnull=False)))
        .filter(labels__gt=0)
        .select_related("protocol")
        .order_by("-number")
    )


def _defaults(request: HttpRequest, project: Project, closed: QuerySet[Round]) -> dict[str, Any]:
    """The round or collection that a link names, else the latest; and a name that is free."""
    collections = project.collections.order_by("-pk")
    collection = collections.filter(pk=_number(request, "collection")).first()
    chosen = None
    if collection is None:
        chosen = closed.filter(pk=_number(request, "round")).first() or closed.first()
        collection = collections.first() if chosen is None else None
    rounds, files = [one for one in (chosen,) if one], [one for one in (collection,) if one]
    return {
        "rounds": [one.pk for one in rounds],
        "collections": [one.pk for one in files],
        "rule": PreferenceDataset.Rule.MAJORITY,
        "name": free_name(project, rounds, files) if rounds or files else "",
    }


def _number(request: HttpRequest, name: str) -> int:
    asked = request.GET.get(name, "")
    return int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 19 else 0


@dataclass(frozen=True)
class TableRows:
    """A table of the dataset with what can be downloaded of it."""

    name: str
    train: int
    test: int
    files: list[tuple[str, int]]  # path, bytes


@login_required
@require_safe
def dataset(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "labeling/dataset.html", page_of(_dataset_of(request, pk)))


def page_of(found: PreferenceDataset) -> dict[str, Any]:
    """All that the page of a dataset shows."""
    manifest = found.manifest
    kinds = {round["kind"] for round in manifest["parents"]["rounds"]}
    hub = [name for name in manifest["files"] if name.startswith("hub/")]
    return {
        "project": found.project,
        "dataset": found,
        "manifest": manifest,
        "twin": _twin(found),
        "only_ratings": not kinds - {Protocol.Kind.RATING},  # no rule was applied
        "rule_help": rule_help(PreferenceDataset.Rule(found.rule), kinds),
        "tables": [_table(manifest, name) for name in manifest["tables"]],
        "previews": datasets.first_rows(datasets.folder_of(found)),
        "total": _total(manifest),
        "hub_bytes": sum(manifest["files"][name]["bytes"] for name in hub),
        "has_training_rows": any(
            splits["train"] for name, splits in manifest["tables"].items() if name != "prompts"
        ),
        **ai_context(found),
        "rounds": found.rounds.select_related("protocol"),
    }


def ai_context(found: PreferenceDataset, form: AuditForm | None = None) -> dict[str, Any]:
    """What is shown of a dataset that an AI made: by what, and how far people agree with it."""
    if found.source != PreferenceDataset.Source.AI:
        return {}
    report = audits.report(found)
    can_be_audited = audits.can_be_audited(found)
    return {
        "made": found.manifest.get("made"),
        "audit": report,
        "audit_table": _side_by_side(report.agreement) if report else [],
        "audit_form": (form or AuditForm()) if can_be_audited else None,
        "interval": interval_of(report.agreement.share) if report and report.agreement.share else None,
    }


def _side_by_side(found: AiAgreement) -> list[tuple[str, list[int]]]:
    """Rows by what the AI said, columns by what people said."""
    return [
        (words, [found.counts.get((side, other), 0) for other in SIDES])
        for side, words in zip(SIDES, ("the first", "a tie", "the second"), strict=True)
    ]


def _twin(found: PreferenceDataset) -> PreferenceDataset | None:
    """The first dataset of the project that holds the same, when this is not it."""
    same = PreferenceDataset.objects.filter(project=found.project_id, digest=found.digest)
    return same.filter(pk__lt=found.pk).order_by("pk").first()


def _table(manifest: Any, name: str) -> TableRows:
    files = [
        (path, entry["bytes"]) for path, entry in manifest["files"].items() if posixpath.dirname(path) == name
    ]
    rows = manifest["tables"][name]
    files.sort(key=lambda file: ("/test." in file[0], file[0]))
    return TableRows(name, rows["train"], rows["test"], files)


def _total(manifest: Any) -> int:
    return sum(entry["bytes"] for entry in manifest["files"].values())


@login_required
@require_safe
def dataset_file(request: HttpRequest, pk: int, name: str) -> FileResponse:
    """One file. Only names that the manifest lists lead to a path: nothing of the address is joined."""
    found = _dataset_of(request, pk)
    known = {entry: entry for entry in (*found.manifest["files"], MANIFEST)}
    path = known.get(name)
    if path is None:
        raise Http404("This dataset has no such file.")
    try:
        file = open(datasets.folder_of(found) / path, "rb")  # noqa: SIM115  FileResponse closes it
    except FileNotFoundError as error:
        raise Http404("The file is missing from the disk.") from error
    stem = slugify(found.name).removesuffix("-dataset") or "dataset"  # the table's name says it is one
    return FileResponse(
        file,
        as_attachment=True,
        filename=f"{stem}-{path.replace('/', '-')}",
        content_type=CONTENT_TYPES.get(posixpath.splitext(path)[1], "application/octet-stream"),
    )


@login_required
@require_safe
def dataset_zip(request: HttpRequest, pk: int) -> StreamingHttpResponse:
    """Everything in one file, packed while it is sent: nothing is written, little is held in memory."""
    found = _dataset_of(request, pk)
    folder = datasets.folder_of(found)
    names = [*found.manifest["files"], MANIFEST]
    if not all((folder / name).is_file() for name in names):
        raise Http404("A file is missing from the disk.")
    stem = slugify(found.name) or "dataset"
    response = StreamingHttpResponse(zipped(folder, names, within=stem), content_type="application/zip")
    response["Content-Disposition"] = content_disposition_header(True, f"{stem}.zip") or ""
    return response


def _dataset_of(request: HttpRequest, pk: int) -> PreferenceDataset:
    return get_object_or_404(
        PreferenceDataset.objects.managed_by(request.user).select_related("project"), pk=pk
    )
