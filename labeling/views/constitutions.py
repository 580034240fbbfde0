"""A manager's pages of a constitution: read it, edit it into a new version, look at older ones."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from labeling.constitutions import InvalidConstitution, in_full, latest, save, starting
from labeling.forms.constitutions import ConstitutionForm, rearranged, rows_in
from labeling.models import Constitution, Project
from labeling.models.constitutions import Principle


@login_required
@require_safe
def constitution(request: HttpRequest, slug: str) -> HttpResponse:
    """The newest version, or the one that `?version=` names, with what is asked by each principle."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    newest = latest(project)
    asked = request.GET.get("version", "")
    found: Constitution | None = newest
    if asked.isascii() and asked.isdigit() and len(asked) < 9:
        found = get_object_or_404(project.constitutions, version=int(asked))
    context = {
        "project": project,
        "constitution": found,
        "is_newest": found == newest,
        "principles": [in_full(one) for one in (found.principles if found else starting())],
        "versions": project.constitutions.all(),
    }
    return render(request, "labeling/constitution.html", context)


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def constitution_edit(request: HttpRequest, slug: str) -> HttpResponse:
    """Rows to write in. Every button but “Save” gives the same page again, and stores nothing."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    newest = latest(project)
    if request.method != "POST":
        rows: list[Principle] = newest.principles if newest else starting()
        return _page(request, project, ConstitutionForm(principles=rows))
    action = request.POST.get("do", "save")
    if action != "save":
        form = ConstitutionForm(principles=rearranged(rows_in(request.POST), action))
        form.initial["note"] = request.POST.get("note", "")[:200]
        return _page(request, project, form)
    form = ConstitutionForm(request.POST, principles=rows_in(request.POST))
    if form.is_valid():
        try:
            saved = save(project=project, principles=form.written(), note=form.cleaned_data["note"])
        except InvalidConstitution as refused:
            form.add_error(None, str(refused))
        else:
            same = saved == newest
            messages.success(request, f"{saved} {'is as it was' if same else 'is the constitution now'}.")
            return redirect("constitution", project.slug)
    return _page(request, project, form, status=422)


def _page(request: HttpRequest, project: Project, form: ConstitutionForm, **how: Any) -> HttpResponse:
    context = {"project": project, "form": form, "newest": latest(project)}
    return render(request, "labeling/constitution_edit.html", context, **how)
