"""What a program may do with judging: push prompts, take tasks, give labels, read labels and datasets.

The doors are those of the pages: the same activities, the same permissions, 404 for what is not yours.
"""

from typing import Any
from uuid import uuid4

from django.contrib.auth.models import User
from django.http import FileResponse
from django.shortcuts import get_object_or_404
from rest_framework import serializers, status
from rest_framework.decorators import api_view
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import assignment as assignments
from labeling import datasets, labels, prompts, statements
from labeling.models import (
    Assignment,
    Label,
    PreferenceDataset,
    Project,
    Round,
    RoundClosed,
    RoundNotReady,
)


class Conflict(APIException):
    """The round or the assignment is not in a state where this can be done."""

    status_code = status.HTTP_409_CONFLICT


def _conflict(error: Exception) -> Conflict:
    return Conflict("The round is closed." if isinstance(error, RoundClosed) else str(error))


class MessageSerializer(serializers.Serializer[Any]):
    role = serializers.ChoiceField(choices=["system", "user", "assistant"])
    content = serializers.CharField(trim_whitespace=False, max_length=prompts.MAX_CHARACTERS)


class PromptSerializer(serializers.Serializer[Any]):
    messages = MessageSerializer(many=True, allow_empty=False)


class LabelInputSerializer(serializers.Serializer[Any]):
    value = serializers.JSONField()
    key = serializers.UUIDField(default=uuid4)
    seconds = serializers.FloatField(default=0.0, min_value=0.0)


class LabelSerializer(serializers.ModelSerializer[Label]):
    class Meta:
        model = Label
        fields = ["id", "assignment", "protocol", "value", "shown", "seconds", "supersedes", "created_at"]


class DatasetSerializer(serializers.ModelSerializer[PreferenceDataset]):
    class Meta:
        model = PreferenceDataset
        fields = ["id", "name", "rule", "digest", "manifest", "created_at"]


class NewestFirst(CursorPagination):
    ordering = "-pk"
    page_size = 100

    def decode_cursor(self, request: Request) -> Any:
        cursor = super().decode_cursor(request)
        position = "0" if cursor is None or cursor.position is None else str(cursor.position)
        if not (position.isascii() and position.isdigit() and len(position) < 19):
            raise NotFound(self.invalid_cursor_message)
        return cursor


def _person(request: Request) -> User:
    """Anonymous requests come no further than the permission class of the settings."""
    assert isinstance(request.user, User)
    return request.user


def task_json(assignment: Assignment | None) -> dict[str, Any] | None:
    """A task as a rater may see it: no policy, no purpose."""
    if assignment is None:
        return None
    texts = {completion.pk: completion.text for completion in assignment.task.completions.all()}
    return {
        "assignment": assignment.pk,
        "leased_until": assignment.leased_until,
        "prompt": assignment.task.prompt.messages,
        "completions": [{"id": pk, "text": texts[pk]} for pk in assignment.shown],
    }


@api_view(["GET"])
def project_list(request: Request) -> Response:
    found = Project.objects.visible_to(request.user)
    return Response([{"slug": project.slug, "name": project.name} for project in found])


@api_view(["POST"])
def prompt_add(request: Request, slug: str) -> Response:
    """Add prompts (a list of {messages}); those that are there already are returned as they are."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    given = PromptSerializer(data=request.data, many=True)
    given.is_valid(raise_exception=True)
    try:
        added = prompts.add_prompts(
            project=project, conversations=[row["messages"] for row in given.validated_data]
        )
    except prompts.InvalidPrompt as error:
        raise ValidationError(str(error)) from error
    return Response([{"id": prompt.pk, "split": prompt.split} for prompt in added], status=201)


@api_view(["POST"])
def next_task(request: Request, round_id: int) -> Response:
    """Lease the next task of a round: the one held already, if there is one; null when nothing is left."""
    round = get_object_or_404(Round.objects.visible_to(request.user).select_related("protocol"), pk=round_id)
    try:
        task = assignments.next_assignment(round=round, rater=_person(request))
    except (RoundClosed, RoundNotReady) as error:
        raise _conflict(error) from error
    protocol = {
        "kind": round.protocol.kind,
        "question": round.protocol.question,
        "options": round.protocol.options,
    }
    return Response({"protocol": protocol, "task": task_json(task)})


@api_view(["POST"])
def label_add(request: Request, assignment_id: int) -> Response:
    """Label a leased task. Sent again with the same `key`, it changes nothing."""
    person = _person(request)
    try:
        assignment = statements.assignment_for(person, assignment_id)
    except Assignment.DoesNotExist:
        raise NotFound from None
    given = LabelInputSerializer(data=request.data)
    given.is_valid(raise_exception=True)
    try:
        label, following = labels.save_and_next(assignment=assignment, rater=person, **given.validated_data)
    except labels.InvalidLabel as error:
        raise ValidationError({"value": str(error)}) from error
    except (RoundClosed, assignments.LeaseLost, labels.AlreadyLabelled) as error:
        raise _conflict(error) from error
    return Response({"label": label.pk, "next": task_json(following)}, status=201)


@api_view(["GET"])
def label_list(request: Request, slug: str) -> Response:
    """The labels of a project that count, newest first, by pages."""
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    pages = NewestFirst()
    page = pages.paginate_queryset(Label.objects.filter(counts_for__round__project=project), request)
    return pages.get_paginated_response(LabelSerializer(page, many=True).data)


@api_view(["GET"])
def dataset_list(request: Request, slug: str) -> Response:
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    return Response(DatasetSerializer(project.datasets.all(), many=True).data)


@api_view(["GET"])
def dataset_file(request: Request, dataset_id: int, name: str) -> FileResponse:
    """One of the files that the manifest lists."""
    dataset = get_object_or_404(PreferenceDataset.objects.managed_by(request.user), pk=dataset_id)
    if name != "manifest.json" and name not in dataset.manifest.get("files", {}):
        raise NotFound
    path = datasets.folder_of(dataset) / name
    try:
        file = open(path, "rb")  # noqa: SIM115  FileResponse closes it
    except OSError as error:
        raise NotFound(f"{name} is listed, but it cannot be read from the server's disk.") from error
    return FileResponse(file, as_attachment=True, filename=path.name)
