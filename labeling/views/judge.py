"""Where raters judge: a task, its answer, and the next task in the same response.

With htmx the answer is the fragment `#task` alone; without JavaScript the same addresses redirect. A refused
answer comes back filled in, with status 422 when it cannot be a label and 409 when the task or round is gone.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST
from django_htmx.middleware import HtmxDetails

from labeling import assignment as assignments
from labeling import labels, statements
from labeling.forms.judge import FORMS, SKIP_REASONS, SkipForm
from labeling.models import Assignment, Project, Round, RoundClosed, RoundNotReady
from labeling.rendering import render_guidelines
from labeling.rounds import rater_progress
from labeling.views.screens import screen_of

SOMEBODY_ELSE = (
    "Somebody else has signed in in this browser. Sign in as yourself in another tab, then try again."
)


class RaterRequest(HttpRequest):
    user: User
    htmx: HtmxDetails


def raters_action(view: Callable[[RaterRequest, int], HttpResponse]) -> Any:
    """What a rater's page sends. It says whose it is: in another tab somebody else may have signed in."""

    @wraps(view)
    def checked(request: RaterRequest, pk: int) -> HttpResponse:
        if request.headers.get("X-Page-Of", str(request.user.pk)) != str(request.user.pk):
            return HttpResponse(SOMEBODY_ELSE, status=403, content_type="text/plain; charset=utf-8")
        return view(request, pk)

    return login_required(require_POST(checked))


@never_cache
@login_required
@require_GET
def judge(request: RaterRequest, pk: int) -> HttpResponse:
    """Show the rater's task in a round; the first request leases one, one they undid comes as answered."""
    round = _round(request, pk)
    try:
        assignment = assignments.next_assignment(round=round, rater=request.user)
    except (RoundClosed, RoundNotReady) as error:
        return _show_no_task(request, round, error)
    answer = labels.taken_back(assignment) if assignment is not None else {}
    return _show(request, round, assignment, answer=answer)


@raters_action
def save_label(request: RaterRequest, pk: int) -> HttpResponse:
    asked = _assignment(request, pk)
    round = asked.round
    form = FORMS[round.protocol.kind](round.protocol, asked.shown, request.POST)
    if not form.is_valid():
        return _show_again(request, asked, problem=form.problem, given=form.value)
    seconds = form.cleaned_data["seconds"]
    try:
        _, following = labels.save_and_next(
            assignment=asked,
            rater=request.user,
            value=form.value,
            key=form.cleaned_data["key"],
            seconds=_since_leased(asked) if seconds is None else seconds,
        )
    except labels.InvalidLabel as error:
        return _show_again(request, asked, problem=str(error), given=form.value)
    except RoundClosed:
        return _show_closed(request, round, problem="The round closed before this label came in.")
    except (assignments.LeaseLost, labels.AlreadyLabelled) as error:
        return _show_next(request, round, problem=str(error), status=409)
    if not request.htmx:
        return redirect("judge", round.pk)
    return _show(request, round, following, done="Saved.")


@raters_action
def skip(request: RaterRequest, pk: int) -> HttpResponse:
    asked = _assignment(request, pk)
    form = SkipForm(request.POST)
    if not form.is_valid():
        return _show_again(request, asked, problem=form.problem, given={})
    try:
        assignments.skip(assignment_id=pk, rater=request.user, reason=form.cleaned_data["reason"])
    except RoundClosed:
        return _show_closed(request, asked.round)
    except assignments.LeaseLost as error:
        return _show_next(request, asked.round, problem=str(error), status=409)
    if not request.htmx:
        return redirect("judge", asked.round_id)
    return _show_next(request, asked.round, done="Skipped.")


@raters_action
def undo(request: RaterRequest, pk: int) -> HttpResponse:
    """Take the rater's last label back and show its task as it was answered."""
    round = _round(request, pk)
    try:
        assignment, label = labels.undo(round=round, rater=request.user)
    except RoundClosed:
        return _show_closed(request, round, problem="The round is closed: its labels stand as they are.")
    except labels.NothingToUndo:
        return _show_next(request, round, problem="There is no label of yours to take back.", status=409)
    notice = "Your last label is taken back. Answer again, or give the same answer."
    if not request.htmx:
        messages.success(request, notice)
        return redirect("judge", round.pk)
    return _show(request, round, assignment, answer=label.value or {}, notice=notice)


@raters_action
def renew(request: RaterRequest, pk: int) -> HttpResponse:
    """Keep the task while its page is open: 204, or 409 with a word that it is lost."""
    asked = _assignment(request, pk)
    if assignments.renew(assignment_id=pk, rater=request.user):
        return HttpResponse(status=204)
    context = {"round": asked.round, "is_closed": asked.round.state == Round.State.CLOSED}
    return render(request, "labeling/judge/_lost.html", context, status=409)


def _round(request: RaterRequest, pk: int) -> Round:
    """A round whose project the user belongs to, or 404."""
    visible = Round.objects.visible_to(request.user)
    return get_object_or_404(visible.select_related("project", "protocol"), pk=pk)


def _assignment(request: RaterRequest, pk: int) -> Assignment:
    """An assignment of a project that the user belongs to, or 404. Whose it is, the activities ask."""
    try:
        return statements.assignment_for(request.user, pk)
    except Assignment.DoesNotExist:
        raise Http404 from None


def _since_leased(assignment: Assignment) -> float:
    """The server's own measure, for browsers that send none."""
    return (timezone.now() - assignment.leased_at).total_seconds() if assignment.leased_at else 0.0


def _show_next(
    request: RaterRequest, round: Round, *, problem: str = "", done: str = "", status: int = 200
) -> HttpResponse:
    try:
        assignment = assignments.next_assignment(round=round, rater=request.user)
    except (RoundClosed, RoundNotReady) as error:
        return _show_no_task(request, round, error)
    return _show(request, round, assignment, problem=problem, done=done, status=status)


def _show_no_task(request: RaterRequest, round: Round, error: RoundClosed | RoundNotReady) -> HttpResponse:
    if isinstance(error, RoundClosed):
        return _show_closed(request, round, status=200 if request.method == "GET" else 409)
    return _show_nothing(request, round, title="Not yet", text=str(error))


def _show_again(
    request: RaterRequest, asked: Assignment, given: dict[str, Any], problem: str
) -> HttpResponse:
    """The same task with what was entered, when it is still the rater's; else the one they hold."""
    try:
        assignment = assignments.next_assignment(round=asked.round, rater=request.user)
    except (RoundClosed, RoundNotReady):
        return _show_closed(request, asked.round)
    is_same = assignment is not None and assignment.pk == asked.pk
    return _show(
        request, asked.round, assignment, answer=given if is_same else {}, problem=problem, status=422
    )


def _show_closed(
    request: RaterRequest, round: Round, *, problem: str = "", status: int = 409
) -> HttpResponse:
    text = "Its labels are counted. Thank you. The next round stands on the start page as soon as it opens."
    return _show_nothing(
        request, round, title="This round is closed", text=text, problem=problem, status=status
    )


def _show_nothing(
    request: RaterRequest, round: Round, *, title: str, text: str, problem: str = "", status: int = 200
) -> HttpResponse:
    context = {"title": title, "text": text, "problem": problem}
    return _render(request, round, "labeling/judge/_nothing.html", context, status=status)


def _show(
    request: RaterRequest,
    round: Round,
    assignment: Assignment | None,
    *,
    answer: dict[str, Any] | None = None,
    problem: str = "",
    notice: str = "",
    done: str = "",
    status: int = 200,
) -> HttpResponse:
    """`done`: what became of the task before, for who hears the page instead of seeing it."""
    if assignment is None:
        context: dict[str, Any] = {
            "title": "Nothing is left for you here",
            "text": "You have judged every task of this round that was open to you. Thank you.",
            "problem": problem,
            "progress": rater_progress(round, request.user),
        }
        return _render(request, round, "labeling/judge/_nothing.html", context, status=status)
    context = {
        "screen": screen_of(assignment, round.protocol, answer or {}),
        "progress": rater_progress(round, request.user),
        "skip_reasons": SKIP_REASONS,
        "problem": problem,
        "notice": notice,
        "done": done,
    }
    return _render(request, round, "labeling/judge/_task.html", context, status=status)


def _render(
    request: RaterRequest, round: Round, fragment: str, context: dict[str, Any], *, status: int
) -> HttpResponse:
    context |= {"round": round, "protocol": round.protocol, "options": round.protocol.options}
    if request.htmx:
        return render(request, fragment, context, status=status)
    project = round.project
    context |= {
        "project": project,
        "fragment": fragment,
        "guidelines": render_guidelines(project.guidelines),
        "manages": Project.objects.managed_by(request.user).filter(pk=project.pk).exists(),
    }
    return render(request, "labeling/judge/page.html", context, status=status)
