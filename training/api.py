"""What a program may do with runs: start one, follow it, cancel and resume it."""

from typing import Any

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.models import Policy, PreferenceDataset, Project
from training import constitutional, ensembles, runs
from training.ingredients import MAKING, OFFERED
from training.mixtures import Mixed
from training.models import Artifact, Run, RunDataset
from training.rewards import reward_from
from training.rlhf.method_settings import REWARD_KINDS
from training.rlhf.mixture_settings import MOST_WEIGHT
from training.rlhf.reward_options import MOST_MODELS

METRICS_A_PAGE = 1000
LARGEST_ID = 2**63 - 1


class RunDatasetSerializer(serializers.ModelSerializer[RunDataset]):
    class Meta:
        model = RunDataset
        fields = ["dataset", "name", "weight"]


class RunSerializer(serializers.ModelSerializer[Run]):
    mixture = RunDatasetSerializer(many=True, read_only=True)

    class Meta:
        model = Run
        fields = [
            "id", "method", "state", "message", "step", "total_steps", "attempt", "config", "preflight",
            "evaluation", "dataset", "mixture", "policy", "constitution",
            "made_dataset", "ensemble", "created_at", "started_at", "ended_at",
        ]  # fmt: skip


class RewardInputSerializer(serializers.Serializer[Any]):
    """One reward of an online method.

    kind `model`: `reward_model_run`, a run of this project. `ensemble`, `gated`: `options`; `models`, or
    `helpfulness` and `safety`, are such runs by their numbers. `length`, `regex`, `forbidden`, `python`:
    `options`. `judge`: `options`, and `location`, an address in RATCHET_JUDGES or a policy of this project.
    """

    name = serializers.CharField(required=False, max_length=60)
    kind = serializers.ChoiceField(choices=REWARD_KINDS)
    weight = serializers.FloatField(default=1.0)
    reward_model_run = serializers.IntegerField(required=False, max_value=LARGEST_ID)
    location = serializers.CharField(default="", allow_blank=True, max_length=500)
    options = serializers.DictField(default=dict)

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        if (given["kind"] == "model") != ("reward_model_run" in given):
            raise ValidationError({"reward_model_run": "Name it for the kind model, and for no other."})
        return given


class MixedInputSerializer(serializers.Serializer[Any]):
    """A further dataset, and its weight beside the main one's 1."""

    dataset = serializers.IntegerField(max_value=LARGEST_ID)
    weight = serializers.FloatField(default=1.0, min_value=0, max_value=MOST_WEIGHT)


class RunInputSerializer(serializers.Serializer[Any]):
    """`config`: what differs from the defaults of a recipe, section by section, as a run shows it.

    A method that writes by a constitution takes no dataset, but the version of it, by default the newest.
    `ensemble_size`: so many reward models that differ by seed; the first one is answered.
    """

    method = serializers.ChoiceField(choices=OFFERED)
    dataset = serializers.IntegerField(required=False, max_value=LARGEST_ID)
    constitution = serializers.IntegerField(required=False, max_value=LARGEST_ID)
    mixture = MixedInputSerializer(many=True, required=False)
    policy = serializers.IntegerField(max_value=LARGEST_ID)
    reward_model_run = serializers.IntegerField(required=False, allow_null=True, max_value=LARGEST_ID)
    rewards = RewardInputSerializer(many=True, required=False)
    evaluators = RewardInputSerializer(many=True, required=False)
    config = serializers.DictField(required=False)
    ensemble_size = serializers.IntegerField(default=1, min_value=1, max_value=MOST_MODELS)
    start_when_ready = serializers.BooleanField(default=True)
    then_next_round = serializers.BooleanField(default=False)

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        if (given["method"] in MAKING) == ("dataset" in given):
            raise ValidationError({"dataset": "Name one, unless the method writes by a constitution."})
        return given


@api_view(["GET", "POST"])
def run_list(request: Request, slug: str) -> Response:
    """The project's runs, newest first; POST makes one (see RunInputSerializer)."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    if request.method == "GET":
        return Response(RunSerializer(project.runs.prefetch_related("mixture")[:100], many=True).data)
    given = RunInputSerializer(data=request.data)
    given.is_valid(raise_exception=True)
    values = given.validated_data
    if values["method"] in MAKING:
        return Response(RunSerializer(_by_constitution(request, project, values)).data, status=201)
    values.pop("constitution", None)
    reward_run = values.pop("reward_model_run", None)
    for role in ("rewards", "evaluators"):
        if listed := values.pop(role, []):
            values["config"] = {**values.get("config", {}), role: [_reward(project, one) for one in listed]}
    try:
        run = ensembles.create(
            size=values.pop("ensemble_size"),
            config=values.pop("config", {}),
            project=project,
            dataset=get_object_or_404(PreferenceDataset, project=project, pk=values.pop("dataset")),
            policy=get_object_or_404(Policy, project=project, pk=values.pop("policy")),
            reward_model=_artifact(project, reward_run) if reward_run is not None else None,
            mixture=[
                Mixed(get_object_or_404(PreferenceDataset, project=project, pk=one["dataset"]), one["weight"])
                for one in values.pop("mixture", [])
            ],
            created_by=request.user if request.user.is_authenticated else None,
            **values,
        )
    except runs.RunRefused as error:
        raise ValidationError(str(error)) from error
    return Response(RunSerializer(run).data, status=201)


def _by_constitution(request: Request, project: Project, values: dict[str, Any]) -> Run:
    version = values.get("constitution")
    versions = project.constitutions.order_by("-version")
    found = versions.first() if version is None else versions.filter(version=version).first()
    if found is None:
        raise ValidationError({"constitution": "The project has no such version."})
    try:
        return constitutional.create_run(
            project=project,
            method=values["method"],
            policy=get_object_or_404(Policy, project=project, pk=values["policy"]),
            constitution=found,
            config=values.get("config"),
            created_by=request.user if request.user.is_authenticated else None,
            start_when_ready=values["start_when_ready"],
        )
    except runs.RunRefused as error:
        raise ValidationError(str(error)) from error


def _reward(project: Project, given: dict[str, Any]) -> dict[str, Any]:
    """An entry of a recipe's `rewards`; what it may name is checked where the run is made."""
    run_id = given.pop("reward_model_run", None)
    if run_id is None:
        return {"name": given["kind"], **given, "options": _with_folders(project, given["options"])}
    return reward_from(_artifact(project, run_id), name=given.get("name", ""), weight=given["weight"])


def _with_folders(project: Project, options: dict[str, Any]) -> dict[str, Any]:
    """Runs of reward models among the options, by the folders that a recipe names."""

    def folder(value: Any) -> Any:
        is_run = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_ID
        return _artifact(project, value).folder if is_run else value

    found = dict(options)
    for name in {"helpfulness", "safety"} & found.keys():
        found[name] = folder(found[name])
    if isinstance(found.get("models"), list):
        found["models"] = [folder(one) for one in found["models"]]
    return found


def _artifact(project: Project, run_id: int) -> Artifact:
    return get_object_or_404(Artifact, run__project=project, run=run_id)


@api_view(["GET"])
def run_detail(request: Request, run_id: int) -> Response:
    return Response(RunSerializer(_run(request, run_id)).data)


@api_view(["GET"])
def run_metrics(request: Request, run_id: int) -> Response:
    """Lines of progress after `?after=SEQ`, in order, at most a thousand."""
    run = _run(request, run_id)
    after = request.query_params.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) < 10):
        raise ValidationError({"after": "a whole number"})
    found = run.metrics.filter(seq__gt=int(after))[:METRICS_A_PAGE]
    return Response([{"seq": m.seq, "step": m.step, "values": m.values} for m in found])


@api_view(["POST"])
def run_cancel(request: Request, run_id: int) -> Response:
    return _changed(runs.cancel, request, run_id)


@api_view(["POST"])
def run_resume(request: Request, run_id: int) -> Response:
    return _changed(runs.resume, request, run_id)


def _run(request: Request, run_id: int) -> Run:
    return get_object_or_404(Run.objects.managed_by(request.user), pk=run_id)


def _changed(change: Any, request: Request, run_id: int) -> Response:
    try:
        run = change(run=_run(request, run_id), by=request.user)
    except runs.RunRefused as error:
        raise ValidationError(str(error)) from error
    return Response(RunSerializer(run).data)
