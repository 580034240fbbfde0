"""A sweep: several runs of one recipe that differ in a few settings, to be compared on one page."""

from typing import Any, Self

from django.conf import settings
from django.db import models
from django.urls import reverse

from labeling.models import Policy, PreferenceDataset, Project
from labeling.models.projects import AnyUser


class SweepQuerySet(models.QuerySet["Sweep"]):
    def managed_by(self, user: AnyUser) -> Self:
        return self.filter(project__in=Project.objects.managed_by(user))


class Sweep(models.Model):
    """What is tried, how the tries are chosen, and what they are compared by."""

    class Strategy(models.TextChoices):
        GRID = "grid", "Grid: every combination"
        RANDOM = "random", "Random: drawn independently"
        BAYESIAN = "bayesian", "Bayesian: each next one where the earlier ones point"

    class State(models.TextChoices):
        RUNNING = "running", "Running"
        COMPLETE = "complete", "Complete"
        CANCELLED = "cancelled", "Cancelled"
        FAILED = "failed", "Failed"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="sweeps")
    method = models.CharField(max_length=24)
    dataset = models.ForeignKey(PreferenceDataset, on_delete=models.PROTECT, related_name="+")
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="+")
    reward_model = models.ForeignKey(
        "training.Artifact", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    config = models.JSONField(default=dict)  # what all runs have in common, as for runs.create_run
    space = models.JSONField()  # training.search_space.to_json
    strategy = models.CharField(max_length=8, choices=Strategy)
    objective = models.CharField(max_length=40)  # a key of training.sweep_objectives
    runs_wanted = models.PositiveIntegerField()
    at_once = models.PositiveSmallIntegerField(default=1)  # Bayesian: proposals that are open together
    minutes = models.PositiveIntegerField(
        default=0
    )  # of training in all; then no more is proposed. 0: no end
    seed = models.PositiveBigIntegerField(default=0)
    state = models.CharField(max_length=9, choices=State, default=State.RUNNING)
    message = models.TextField(blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SweepQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Sweep {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("sweep", args=[self.pk])

    @property
    def is_live(self) -> bool:
        return self.state == self.State.RUNNING


class Trial(models.Model):
    """One point of a sweep, and the run that tries it; without a run it was refused (`refusal`: why)."""

    sweep = models.ForeignKey(Sweep, on_delete=models.CASCADE, related_name="trials")
    number = models.PositiveIntegerField()  # from 1
    values: Any = models.JSONField()  # setting -> value
    run = models.OneToOneField(
        "training.Run", null=True, blank=True, on_delete=models.CASCADE, related_name="trial"
    )
    refusal = models.TextField(blank=True)

    class Meta:
        ordering = ["sweep", "number"]
        constraints = [models.UniqueConstraint(fields=["sweep", "number"], name="a_trial_once")]

    def __str__(self) -> str:
        return f"Trial {self.number} of sweep {self.sweep_id}"
