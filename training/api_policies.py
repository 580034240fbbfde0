"""The API of policies: what a project has, prompted variants of them, and those that a server writes for."""

from typing import Any

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.model_servers import add_served
from labeling.models import Policy, Project
from labeling.policies import PolicyRefused
from labeling.prompting import MOST_CHARACTERS, make_prompted
from training.prompted import prompt_version

LARGEST_ID = 2**63 - 1
MOST = 500  # listed at once, the newest


class PolicySerializer(serializers.ModelSerializer[Policy]):
    prompt_version = serializers.SerializerMethodField()

    class Meta:
        model = Policy
        fields = [
            "id", "name", "state", "parent", "location", "model_name", "system_prompt", "examples",
            "prompt_version", "created_at",
        ]  # fmt: skip

    def get_prompt_version(self, policy: Policy) -> str:
        return prompt_version(policy)


class ExampleSerializer(serializers.Serializer[Any]):
    user = serializers.CharField(max_length=MOST_CHARACTERS)
    assistant = serializers.CharField(max_length=MOST_CHARACTERS)


class PolicyInputSerializer(serializers.Serializer[Any]):
    """A variant: `policy`, with `system_prompt` and `examples`. On a server: `server` and `model_name`."""

    name = serializers.CharField(required=False, default="", allow_blank=True, max_length=120)
    policy = serializers.IntegerField(required=False, max_value=LARGEST_ID)
    system_prompt = serializers.CharField(default="", allow_blank=True, max_length=MOST_CHARACTERS)
    examples = ExampleSerializer(many=True, required=False)
    server = serializers.CharField(required=False, max_length=500)
    model_name = serializers.CharField(default="", allow_blank=True, max_length=200)

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        if ("policy" in given) == ("server" in given):
            raise ValidationError({"policy": "Name the policy to prompt, or a server, and not both."})
        return given


@api_view(["GET", "POST"])
def policy_list(request: Request, slug: str) -> Response:
    """The project's policies, newest first; POST makes one (see PolicyInputSerializer)."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    if request.method == "GET":
        return Response(PolicySerializer(project.policies.order_by("-pk")[:MOST], many=True).data)
    asked = PolicyInputSerializer(data=request.data)
    asked.is_valid(raise_exception=True)
    given = asked.validated_data
    try:
        if "server" in given:
            address, model_name = given["server"], given["model_name"]
            made = add_served(project=project, address=address, model_name=model_name, name=given["name"])
        else:
            made = make_prompted(
                policy=get_object_or_404(Policy, project=project, pk=given["policy"]),
                system_prompt=given["system_prompt"],
                examples=[(one["user"], one["assistant"]) for one in given.get("examples", [])],
                name=given["name"],
            )
    except PolicyRefused as refusal:
        raise ValidationError(str(refusal)) from refusal
    return Response(PolicySerializer(made).data, status=201)
