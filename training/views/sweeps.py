"""Sweeps in the browser: begin one beside the form of a run, watch its runs, cancel it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.models import Project
from training import runs, search_space, sweeps
from training.charts import Chart, number
from training.forms.setting_words import CHOICES
from training.forms.sweep import setting_in_words
from training.ingredients import TRAINABLE
from training.models import Run, Sweep, Trial
from training.rlhf.methods import METHODS
from training.sweep_charts import Result, setting_chart
from training.sweep_objectives import Measured, Objective, measured, objective_of
from training.views.run_new import new_run_context

SHARES = ("accuracy", "win_rate")  # objectives that are shares of 1


@dataclass(frozen=True)
class Row:
    trial: Trial
    values: list[str]
    found: Measured | None
    value: str
    interval: str
    took: timedelta | None
    is_best: bool


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def sweep_new(request: HttpRequest, slug: str) -> HttpResponse:
    """The page of a new run with the part about several values open."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    context = new_run_context(request, project)
    form, sweep_form = context["form"], context["sweep_form"]
    if request.method == "POST" and form.is_valid() & sweep_form.is_valid():
        chosen, asked = form.cleaned_data, sweep_form.cleaned_data
        try:
            sweep = sweeps.create_sweep(
                project=project,
                method=context["method"],
                dataset=chosen["dataset"],
                policy=chosen["policy"],
                reward_model=chosen.get("reward_model"),
                config=form.config,
                seed=chosen["seed"],
                space=sweep_form.space,
                strategy=asked["strategy"],
                objective=asked["objective"],
                runs_wanted=asked["runs_wanted"],
                minutes=asked["minutes"],
                created_by=request.user if request.user.is_authenticated else None,
            )
            return redirect(sweep)
        except sweeps.SweepRefused as refusal:
            sweep_form.refuse(refusal)
        except runs.RunRefused as refusal:
            form.refuse(str(refusal).removeprefix(f"{runs.UNFIT} "))
    wrong = bool(form.errors or sweep_form.errors)
    context |= {"is_chosen": True, "sweep_open": True}
    return render(request, "training/run_new.html", context, status=422 if wrong else 200)


@login_required
@require_safe
def sweep(request: HttpRequest, sweep_id: int) -> HttpResponse:
    found = _sweep_of(request, sweep_id)
    is_fragment = request.headers.get("HX-Request") == "true"
    template = "training/_sweep_state.html" if is_fragment else "training/sweep.html"
    return render(request, template, {"project": found.project, **_context(found)})


@login_required
@require_POST
def sweep_cancel(request: HttpRequest, sweep_id: int) -> HttpResponse:
    found = _sweep_of(request, sweep_id)
    refused = ""
    try:
        sweeps.cancel(sweep=found, by=request.user if request.user.is_authenticated else None)
    except sweeps.SweepRefused as refusal:
        refused = str(refusal)
    if request.headers.get("HX-Request") == "true":
        context = {**_context(found), "refused": refused}
        return render(request, "training/_sweep_state.html", context, status=409 if refused else 200)
    if refused:
        messages.error(request, refused)
    return redirect(found)


def _sweep_of(request: HttpRequest, sweep_id: int) -> Sweep:
    rows = Sweep.objects.managed_by(request.user).select_related(
        "project", "dataset", "policy", "reward_model", "created_by"
    )
    return get_object_or_404(rows, pk=sweep_id)


def _context(sweep: Sweep) -> dict[str, Any]:
    """Three queries, however many runs there are."""
    goal = objective_of(sweep.method, sweep.objective)
    assert goal is not None  # checked when the sweep was made
    trials = list(sweep.trials.select_related("run", "run__project"))
    rows = _rows(sweep, trials, goal)
    ended = [row for row in rows if row.trial.run is None or row.trial.run.state not in sweeps.OPEN]
    failed = [row for row in ended if row.found is None]
    return {
        "sweep": sweep,
        "label": METHODS[sweep.method].label if sweep.method in METHODS else sweep.method,
        "is_trainable": sweep.method in TRAINABLE,
        "goal": goal,
        "columns": [setting_in_words(sweep.method, key) for key in sweep.space],
        "rows": rows,
        "best": next((row for row in rows if row.is_best), None),
        "ended": len(ended),
        "failed": len(failed),
        "space": [
            (setting_in_words(sweep.method, key), search_space.in_words(one))
            for key, one in search_space.from_json(sweep.space).items()
        ],
        "charts": _charts(sweep, rows, goal),
        "workers": runs.workers_alive(),
    }


def _rows(sweep: Sweep, trials: list[Trial], goal: Objective) -> list[Row]:
    found = {trial.pk: measured(trial.run, goal) for trial in trials}
    values = [one.value for one in found.values() if one]
    best = (max if goal.higher_is_better else min)(values) if values else None
    first = next((pk for pk, one in found.items() if one and one.value == best), None)
    write = _share if goal.key in SHARES else number
    return [
        Row(
            trial=trial,
            values=[_word(key, trial.values.get(key)) for key in sweep.space],
            found=one,
            value=write(one.value) if one else "–",
            interval=f"{write(one.low)} to {write(one.high)}"
            if one and one.low is not None and one.high is not None
            else "",
            took=_took(trial.run),
            is_best=trial.pk == first,
        )
        for trial, one in ((trial, found[trial.pk]) for trial in trials)
    ]


def _share(value: float) -> str:
    """With a digit more than elsewhere: good runs of a sweep lie close together.

    >>> _share(0.7964)
    '79.6 %'
    """
    return f"{value * 100:.1f} %"


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else CHOICES.get(key, {}).get(str(value), str(value))


def _took(run: Run | None) -> timedelta | None:
    if run is None or run.started_at is None or run.ended_at is None:
        return None
    return run.ended_at - run.started_at


def _charts(sweep: Sweep, rows: list[Row], goal: Objective) -> list[Chart]:
    measured_rows = [row for row in rows if row.found]
    if len(measured_rows) < 2:
        return []
    return [
        setting_chart(
            key=f"setting-{place}",
            title=f"By {setting_in_words(sweep.method, key).lower()}",
            x_label=setting_in_words(sweep.method, key).lower(),
            y_label=goal.label,
            results=[
                Result(
                    label=f"{row.trial.number}",
                    at=_at(key, row.trial.values.get(key)),
                    value=row.found.value,
                    low=row.found.low,
                    high=row.found.high,
                    is_best=row.is_best,
                )
                for row in measured_rows
                if row.found
            ],
            log=True if one.get("log") else None,
        )
        for place, (key, one) in enumerate(sweep.space.items())
    ]


def _at(key: str, value: Any) -> Any:
    return CHOICES.get(key, {}).get(value, value) if isinstance(value, str) else value
