"""A round: a set of tasks that people judge under one protocol, opened and closed as one."""

from typing import Self

from django.db import models
from django.urls import reverse

from labeling.models.policies import Policy
from labeling.models.projects import AnyUser, Project, Protocol
from labeling.models.prompts import Completion, Prompt


class RoundClosed(Exception):
    """The round is closed: nothing in it can be judged, taken or undone."""


class RoundNotReady(Exception):
    """The round waits for completions, has no tasks, or cannot be made; the message says which."""


class RoundQuerySet(models.QuerySet["Round"]):
    def visible_to(self, user: AnyUser) -> Self:
        if user.is_superuser:
            return self
        return self.filter(project__memberships__user_id=user.pk).distinct()

    def managed_by(self, user: AnyUser) -> Self:
        return self.filter(project__in=Project.objects.managed_by(user))


class Round(models.Model):
    class State(models.TextChoices):
        WAITING = "waiting", "Waiting for completions"
        OPEN = "open", "Open"
        CLOSED = "closed", "Closed"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField()
    protocol = models.ForeignKey(Protocol, on_delete=models.PROTECT, related_name="rounds")
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    overlap = models.PositiveSmallIntegerField(default=1, help_text="Labels wanted for each task.")
    # What was asked for: labeling.rounds.RoundPlan as JSON.
    plan = models.JSONField(default=dict)
    old_policy = models.ForeignKey(Policy, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    new_policy = models.ForeignKey(Policy, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    # Positions are given out in rising order; a slot that is given back moves behind all others.
    next_position = models.BigIntegerField(default=0)
    wanted = models.PositiveIntegerField(default=0, help_text="Labels wanted in all: assignments made.")
    created_at = models.DateTimeField(auto_now_add=True)
    opened_at = models.DateTimeField(null=True, blank=True)
    closed_at = models.DateTimeField(null=True, blank=True)

    objects = RoundQuerySet.as_manager()

    class Meta:
        ordering = ["project", "number"]
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="round_numbers_are_unique"),
            models.CheckConstraint(condition=models.Q(overlap__gte=1), name="round_overlap_at_least_1"),
        ]

    def __str__(self) -> str:
        return f"Round {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("round", args=[self.pk])


class Task(models.Model):
    class Purpose(models.TextChoices):
        TRAIN = "train"
        TEST = "test"  # prompt held out: measures the reward model
        GATE = "gate"  # prompt held out: new policy against old, blind

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="tasks")
    prompt = models.ForeignKey(Prompt, on_delete=models.PROTECT, related_name="tasks")
    purpose = models.CharField(max_length=5, choices=Purpose, default=Purpose.TRAIN)
    completions = models.ManyToManyField(Completion, through="TaskItem", related_name="tasks")

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"task {self.pk}"


class TaskItem(models.Model):
    """One completion of a task. Its place here says nothing: order on screen belongs to the assignment."""

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="items")
    completion = models.ForeignKey(Completion, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["task", "completion"], name="a_completion_once_in_a_task")
        ]

    def __str__(self) -> str:
        return f"completion {self.completion_id} of task {self.task_id}"
