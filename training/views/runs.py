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
from training.forms.run import RunForm
from training.ingredients import (
    RUNNABLE,
    can_be_learnt_from,
    datasets_to_learn_from,
    reward_models,
    trained_policies,
)
from training.models import Artifact, Run
from training.rlhf.methods import METHODS
from training.views import evaluations, method_choice
from training.views.curves import curves_of
from training.views.ensembles import ensemble_of
from training.views.judge_audits import audits_of, judge_audit
from training.views.queue import waits_behind
from training.views.settings import evaluators_in_words, rewards_in_words, settings_in_words
from training.views.verdicts import verdicts

OVER = (Run.State.COMPLETE, Run.State.REFUSED, Run.State.FAILED, Run.State.CANCELLED)
PACE_LINES = 30  # lines of progress that the time left is judged by


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def run_new(request: HttpRequest, slug: str) -> HttpResponse:
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    like = _run_like(request, project)
    dataset = project.datasets.filter(pk=_number(request, "dataset") or 0).first()
    asked = request.GET.get("method")
    method = asked or (like.method if like else method_choice.likely_method(project, dataset))
    if method not in RUNNABLE:
        method = Run.Method.REWARD_MODEL
    form = RunForm(
        request.POST if request.method == "POST" else None,
        project=project,
        method=method,
        like=like,
        initial=_chosen_in(request, project),
    )
    if request.method == "POST" and form.is_valid():
        try:
            run = ensembles.create(
                size=form.cleaned_data.get("ensemble_size") or 1,
                project=project,
                method=method,
                dataset=form.cleaned_data["dataset"],
                policy=form.cleaned_data["policy"],
                reward_model=form.cleaned_data.get("reward_model"),
                config=form.config,
                created_by=request.user if request.user.is_authenticated else None,
                start_when_ready=form.cleaned_data["start_when_ready"],
                then_next_round=form.cleaned_data.get("then_next_round", True),
            )
            return redirect("run", run.pk)
        except runs.RunRefused as refusal:
            form.refuse(str(refusal).removeprefix(f"{runs.UNFIT} "))
    context = {
        "project": project,
        "form": form,
        "like": like,
        "method": method,
        "learns": METHODS[method],
        "when": method_choice.WHEN[method],
        "groups": method_choice.choices(project),
        "is_chosen": bool(asked or like or form.errors),
        "kept_dataset": dataset or (like.dataset if like else None),
        "has_rows": datasets_to_learn_from(project, method).exists(),
        "way_to_rows": method_choice.way_to_rows(project, method),
        "unfit": dataset if dataset and not can_be_learnt_from(dataset, method) else None,
        "judge_audits": audits_of(project) if form.may_ask_a_judge() else [],
        "has_policies": trained_policies(project).exists(),
    }
    return render(request, "training/run_new.html", context, status=422 if form.errors else 200)


def _run_like(request: HttpRequest, project: Project) -> Run | None:
    """The run whose settings a link to the form names."""
    pk = _number(request, "like")
    return project.runs.filter(method__in=RUNNABLE, pk=pk).first() if pk is not None else None


def _chosen_in(request: HttpRequest, project: Project) -> dict[str, Any]:
    """Dataset, policy and reward model that a link to the form names, or the models of an ensemble."""
    names = ("dataset", "policy", "reward_model")
    found: dict[str, Any] = {name: number for name in names if (number := _number(request, name)) is not None}
    first = _number(request, "ensemble")
    if first is not None:
        models = reward_models(project).filter(run__ensemble=first)
        found["ensemble_models"] = [str(one.run_id) for one in models]
    return found


def _number(request: HttpRequest, name: str) -> int | None:
    value = request.GET.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


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
        },
    )


def _run_of(request: HttpRequest, run_id: int) -> Run:
    return get_object_or_404(
        Run.objects.managed_by(request.user).select_related(
            "project", "dataset", "policy", "reward_model__run__dataset", "round", "created_by",
            "artifact__policy", "next_round",
        ),
        pk=run_id,
    )  # fmt: skip


def _state_context(run: Run) -> dict[str, Any]:
    """What the fragment shows that moves with the state."""
    evaluation = run.evaluation if run.state == Run.State.COMPLETE else {}
    return {
        "run": run,
        "preflight": evaluations.preflight_report(run.preflight),
        "waits_behind": waits_behind(run),
        "time_left": _time_left(run),
        "took": run.ended_at - run.started_at if run.started_at and run.ended_at else None,
        "reward_evaluation": evaluations.reward_evaluation(run) if evaluation else None,
        "rating_evaluation": evaluations.rating_evaluation(evaluation),
        "policy_figures": evaluations.policy_figures(evaluation),
        "criteria": evaluations.criteria_figures(evaluation),
        "judge_audit": judge_audit(evaluation, run) if evaluation else None,
        "ensemble": ensemble_of(run),
        "verdicts": verdicts(evaluation, _artifact_of(run)) if evaluation else None,
        "evaluation_error": evaluations.evaluation_error(evaluation),
        "artifact": _artifact_of(run),
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
