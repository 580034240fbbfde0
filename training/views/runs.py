"""Runs in the browser: choose, check, start, watch, cancel, go on."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.models import Project
from training import ensembles, runs
from training.ingredients import MAKING
from training.models import Artifact, Run
from training.prompted import was_bare
from training.views import alarms, constitutional, costs, evaluations, mixtures
from training.views.curves import curves_of
from training.views.ensembles import ensemble_of
from training.views.judge_audits import judge_audit
from training.views.queue import waits_behind
from training.views.run_new import asks_for_a_sweep, new_run_context, run_like, usual_rate_help
from training.views.settings import evaluators_in_words, rewards_in_words, settings_in_words
from training.views.stopping import stopping_in_words
from training.views.verdicts import verdicts

OVER = (Run.State.COMPLETE, Run.State.REFUSED, Run.State.FAILED, Run.State.CANCELLED)
PACE_LINES = 30  # lines of progress that the time left is judged by


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def run_new(request: HttpRequest, slug: str) -> HttpResponse:
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    like = run_like(request, project)
    chosen = request.GET.get("method") or (like.method if like else "")
    if chosen in MAKING:
        return constitutional.run_new(request, project, chosen, like)
    context = new_run_context(request, project)
    form = context["form"]
    if request.method == "POST" and form.is_valid() and asks_for_a_sweep(request):
        form.add_error(None, "There are values to try: press “Start the sweep”, or empty their fields.")
    elif request.method == "POST" and form.is_valid():
        try:
            run = ensembles.create(
                size=form.cleaned_data.get("ensemble_size") or 1,
                project=project,
                method=context["method"],
                dataset=form.cleaned_data["dataset"],
                policy=form.cleaned_data["policy"],
                reward_model=form.cleaned_data.get("reward_model"),
                config=form.config,
                mixture=form.mixed,
                created_by=request.user if request.user.is_authenticated else None,
                start_when_ready=form.cleaned_data["start_when_ready"],
                then_next_round=form.cleaned_data.get("then_next_round", True),
            )
            return redirect("run", run.pk)
        except runs.RunRefused as refusal:
            form.refuse(str(refusal).removeprefix(f"{runs.UNFIT} "))
    context["is_chosen"] = context["is_chosen"] or bool(form.errors)
    return render(request, "training/run_new.html", context, status=422 if form.errors else 200)


@login_required
@require_safe
def usual_rate(request: HttpRequest, slug: str) -> HttpResponse:
    """For the page of a new run, when another kind of tuning is chosen."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    return HttpResponse(usual_rate_help(request, project))


@login_required
@require_safe
def run(request: HttpRequest, run_id: int) -> HttpResponse:
    found = _run_of(request, run_id)
    if request.headers.get("HX-Request") == "true":
        return render(request, "training/_run_state.html", _state_context(found))
    return render(
        request,
        "training/run.html",
        {
            **_state_context(found),
            "project": found.project,
            "last_values": _last_values(found),
            "expects_values": found.method != Run.Method.SAMPLE and found.state not in OVER,
            "workers": runs.workers_alive(),
            "lineage": _lineage(found),
            "settings_shown": settings_in_words(found),
            "rewards": rewards_in_words(found),
            "evaluators": evaluators_in_words(found),
            "curves": curves_of(found),
            "mixture": found.mixture.select_related("dataset"),
        },
    )


def _run_of(request: HttpRequest, run_id: int) -> Run:
    return get_object_or_404(
        Run.objects.managed_by(request.user).select_related(
            "project", "dataset", "policy", "reward_model__run__dataset", "round", "created_by",
            "artifact__policy", "next_round", "constitution__project", "made_dataset", "trial__sweep",
        ),
        pk=run_id,
    )  # fmt: skip


def _state_context(run: Run) -> dict[str, Any]:
    """What the fragment shows that moves with the state."""
    evaluation = run.evaluation if run.state == Run.State.COMPLETE else {}
    return {
        "run": run,
        "preflight": evaluations.preflight_report(run.preflight, mixtures.names(run)),
        "waits_behind": waits_behind(run),
        "time_left": _time_left(run),
        "took": run.ended_at - run.started_at if run.started_at and run.ended_at else None,
        "reward_evaluation": evaluations.reward_evaluation(run) if evaluation else None,
        "rating_evaluation": evaluations.rating_evaluation(evaluation),
        "dataset_evaluation": mixtures.dataset_evaluation(run) if evaluation else None,
        "policy_figures": evaluations.policy_figures(evaluation),
        "criteria": evaluations.criteria_figures(evaluation),
        "judge_audit": judge_audit(evaluation, run) if evaluation else None,
        "ensemble": ensemble_of(run),
        "verdicts": verdicts(evaluation, _artifact_of(run)) if evaluation else None,
        "evaluation_error": evaluations.evaluation_error(evaluation),
        "was_bare": was_bare(run),
        "stopping": stopping_in_words(evaluation),
        "artifact": _artifact_of(run),
        "alarms": alarms.of(run),
        "cost": costs.cost(run),
        "unaudited": constitutional.unaudited(run),
        "made": constitutional.made_figures(run),
        "made_samples": constitutional.samples_of(run),
    }


def _artifact_of(run: Run) -> Artifact | None:
    try:
        return run.artifact
    except Artifact.DoesNotExist:
        return None


def _time_left(run: Run) -> timedelta | None:
    """From the pace of the last lines of progress; None when it cannot be told."""
    if run.state != Run.State.RUNNING or not run.total_steps:
        return None
    lines: list[tuple[int, datetime]] = list(
        run.metrics.order_by("-seq").values_list("step", "created_at")[:PACE_LINES]
    )
    if len(lines) < 2 or lines[0][0] <= lines[-1][0]:
        return None
    (newest, now), (oldest, before) = lines[0], lines[-1]
    if newest >= run.total_steps:
        return None  # what follows has no steps
    return (now - before) / (newest - oldest) * (run.total_steps - newest)


def _last_values(run: Run) -> list[tuple[str, float, int]]:
    """The last value of each metric with its step, for readers and for pages without JavaScript."""
    last: dict[str, tuple[float, int]] = {}
    for line in run.metrics.order_by("-seq")[:200]:
        for name, value in line.values.items():
            last.setdefault(name, (value, line.step))
    return [(name, value, step) for name, (value, step) in sorted(last.items())]


def _lineage(run: Run) -> dict[str, Any]:
    artifact = _artifact_of(run)
    return artifact.lineage if artifact else {}


def _action(activity: Callable[..., Run]) -> Callable[[HttpRequest, int], HttpResponse]:
    """A view that does one thing to a run and shows its state; htmx gets the fragment."""

    @login_required
    @require_POST
    def view(request: HttpRequest, run_id: int) -> HttpResponse:
        found = _run_of(request, run_id)
        refused = ""
        try:
            activity(run=found, by=request.user)
        except runs.RunRefused as refusal:
            refused = str(refusal)
        if request.headers.get("HX-Request") == "true":
            found = _run_of(request, run_id)
            context = {**_state_context(found), "refused": refused}
            return render(request, "training/_run_state.html", context, status=409 if refused else 200)
        if refused:
            messages.error(request, refused)
        return redirect("run", run_id)

    return view


run_start = _action(runs.start)
run_cancel = _action(runs.cancel)
run_resume = _action(runs.resume)
