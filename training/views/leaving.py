"""Taking a model away: other forms of it, a hub, and commands that serve it. Policies and reward models."""

import shlex
from collections.abc import Iterator
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import content_disposition_header
from django.utils.text import slugify
from django.views.decorators.http import require_POST, require_safe

from labeling.archives import zipped
from labeling.models import Project
from training import exports, runs
from training.forms.leaving import PushForm, WriteForm
from training.leaving import departures
from training.models import Artifact, Departure, Run

SHOWN = 20


@login_required
@require_safe
def away(request: HttpRequest, run_id: int) -> HttpResponse:
    artifact = _artifact(request, run_id)
    if request.headers.get("HX-Request") == "true":
        return render(request, "training/leaving/_departures.html", _list_context(artifact))
    return _page(request, artifact)


@login_required
@require_POST
def write(request: HttpRequest, run_id: int) -> HttpResponse:
    artifact = _artifact(request, run_id)
    form = WriteForm(request.POST, artifact=artifact)
    if not form.is_valid():
        return _page(request, artifact, status=422, write=form)
    return _asked(request, artifact, form, write=form)


@login_required
@require_POST
def push(request: HttpRequest, run_id: int) -> HttpResponse:
    artifact = _artifact(request, run_id)
    form = PushForm(request.POST, artifact=artifact, prefix="push")
    if not form.is_valid():
        return _page(request, artifact, status=422, push=form)
    return _asked(request, artifact, form, push=form)


@login_required
@require_safe
def stored(request: HttpRequest, run_id: int, part: str) -> StreamingHttpResponse:
    """The model, or its adapter, as it lies in the run's folder, packed while it is sent."""
    try:
        made = exports.export(_artifact(request, run_id), part)
    except exports.NothingToExport as nothing:
        raise Http404(str(nothing)) from nothing
    return _archive(made.content, made.name)


@login_required
@require_safe
def download(request: HttpRequest, departure_id: int) -> StreamingHttpResponse:
    row = get_object_or_404(
        Departure.objects.select_related("artifact__policy").filter(
            artifact__run__project__in=Project.objects.managed_by(request.user)
        ),
        pk=departure_id,
    )
    if not row.is_here:
        raise Http404("Its files are not on this machine any more: ask for it again.")
    folder = row.folder / "model"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    title = f"{slugify(exports.title_of(row.artifact)) or f'run-{row.artifact.run_id}'}-{row.form}"
    return _archive(zipped(folder, names, within=title, compress=False), title)


def _archive(content: Iterator[bytes], name: str) -> StreamingHttpResponse:
    response = StreamingHttpResponse(content, content_type="application/zip")
    response["Content-Disposition"] = content_disposition_header(True, f"{name}.zip") or ""
    return response


def _artifact(request: HttpRequest, run_id: int) -> Artifact:
    run = get_object_or_404(Run.objects.managed_by(request.user), pk=run_id)
    return get_object_or_404(
        Artifact.objects.select_related("run__project", "run__policy", "run__dataset", "policy"), run=run
    )


def _asked(request: HttpRequest, artifact: Artifact, form: WriteForm, **forms: WriteForm) -> HttpResponse:
    values = dict(form.cleaned_data)
    assert request.user.is_authenticated
    try:
        departures.ask(
            artifact=artifact, form=values["form"], repo=values.get("repo", ""), by=request.user,
            private=not values.get("public", False), base=values.get("base", ""),
            licence=values.get("licence", ""),
        )  # fmt: skip
    except departures.DepartureRefused as refusal:
        form.add_error(None, str(refusal))
        return _page(request, artifact, status=409, **forms)
    messages.success(request, "It is under way: see below.")
    return redirect("away", artifact.run_id)


def _page(request: HttpRequest, artifact: Artifact, status: int = 200, **forms: Any) -> HttpResponse:
    likely = {"base": departures.likely_base(artifact), "form": Departure.Form.STORED}
    context = {
        "project": artifact.run.project,
        "title": exports.title_of(artifact),
        "parts": exports.parts_of(artifact),
        "is_policy": artifact.kind == Artifact.Kind.POLICY,
        "beside": exports.kind_beside(artifact),
        "workers": runs.workers_alive(),
        "hub": departures.hub_that_workers_reach(),
        "write": WriteForm(artifact=artifact),
        "push": PushForm(artifact=artifact, prefix="push", initial=likely),
        "serve": f"python -m training.rlhf.serve {shlex.quote(artifact.folder)} --port 8100",
        "ask": _curl(artifact),
        **_list_context(artifact),
        **forms,
    }
    return render(request, "training/leaving/page.html", context, status=status)


def _list_context(artifact: Artifact) -> dict[str, Any]:
    rows = list(artifact.departures.select_related("created_by")[:SHOWN])
    return {"artifact": artifact, "departures": rows, "is_live": any(row.is_live for row in rows)}


def _curl(artifact: Artifact) -> str:
    return (
        "curl http://127.0.0.1:8100/v1/chat/completions -H 'Content-Type: application/json' "
        '-d \'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}\''
    )
