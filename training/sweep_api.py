"""What a program may do with sweeps: begin one, follow it, cancel it."""

from typing import Any

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.models import Policy, PreferenceDataset, Project
from training import runs, search_space, sweeps
from training.api import LARGEST_ID
from training.ingredients import TRAINABLE
from training.models import Artifact, Sweep, Trial
from training.sweep_objectives import measured, objective_of


class SweepInputSerializer(serializers.Serializer[Any]):
    """`space`: setting -> list of values, or {low, high, log, whole, points}; `config` is what runs share."""

    method = serializers.ChoiceField(choices=TRAINABLE)
    dataset = serializers.IntegerField(max_value=LARGEST_ID)
    policy = serializers.IntegerField(max_value=LARGEST_ID)
    reward_model_run = serializers.IntegerField(required=False, allow_null=True, max_value=LARGEST_ID)
    config = serializers.DictField(required=False)
    space = serializers.DictField()
    strategy = serializers.ChoiceField(choices=Sweep.Strategy.choices, default=Sweep.Strategy.GRID)
    objective = serializers.CharField(default="", allow_blank=True, max_length=40)
    runs = serializers.IntegerField(default=12, min_value=2, max_value=search_space.MOST_RUNS)
    at_once = serializers.IntegerField(default=1, min_value=1, max_value=16)
    minutes = serializers.IntegerField(default=0, min_value=0, max_value=1_000_000)
    seed = serializers.IntegerField(default=0, min_value=0, max_value=2**32 - 1)


@api_view(["GET", "POST"])
def sweep_list(request: Request, slug: str) -> Response:
    """The project's sweeps, newest first; POST makes one (see SweepInputSerializer)."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    if request.method == "GET":
        return Response([_shown(sweep) for sweep in project.sweeps.all()[:50]])
    given = SweepInputSerializer(data=request.data)
    given.is_valid(raise_exception=True)
    values = given.validated_data
    reward_run = values.pop("reward_model_run", None)
    model = None
    if reward_run is not None:
        model = get_object_or_404(Artifact, run__project=project, run=reward_run)
    try:
        sweep = sweeps.create_sweep(
            project=project,
            dataset=get_object_or_404(PreferenceDataset, project=project, pk=values.pop("dataset")),
            policy=get_object_or_404(Policy, project=project, pk=values.pop("policy")),
            reward_model=model,
            space=search_space.from_json(values.pop("space")),
            runs_wanted=values.pop("runs"),
            created_by=request.user if request.user.is_authenticated else None,
            **values,
        )
    except (runs.RunRefused, search_space.SpaceError) as error:
        raise ValidationError(str(error)) from error
    return Response(_shown(sweep), status=201)


@api_view(["GET"])
def sweep_detail(request: Request, sweep_id: int) -> Response:
    return Response(_shown(_sweep(request, sweep_id)))


@api_view(["POST"])
def sweep_cancel(request: Request, sweep_id: int) -> Response:
    by = request.user if request.user.is_authenticated else None
    try:
        return Response(_shown(sweeps.cancel(sweep=_sweep(request, sweep_id), by=by)))
    except sweeps.SweepRefused as error:
        raise ValidationError(str(error)) from error


def _sweep(request: Request, sweep_id: int) -> Sweep:
    return get_object_or_404(Sweep.objects.managed_by(request.user), pk=sweep_id)


def _shown(sweep: Sweep) -> dict[str, Any]:
    names = ("id", "method", "strategy", "state", "message", "space", "objective", "runs_wanted", "seed")
    trials = sweep.trials.select_related("run")
    return {name: getattr(sweep, name) for name in names} | {"trials": [_trial(sweep, one) for one in trials]}


def _trial(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    goal = objective_of(sweep.method, sweep.objective)
    found = measured(trial.run, goal) if goal else None
    return {
        "number": trial.number,
        "values": trial.values,
        "run": trial.run_id,
        "state": trial.run.state if trial.run else "refused",
        "refusal": trial.refusal,
        "objective": found.value if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
    }
