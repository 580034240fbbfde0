"""What leaves: one form of one artifact, as an archive or for a hub."""

from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models.functions import Now


class DepartureQuerySet(models.QuerySet["Departure"]):
    def waiting(self) -> "DepartureQuerySet":
        """Asked for, or left by a worker that is gone."""
        lost = models.Q(state=Departure.State.WORKING, leased_until__lt=Now())
        return self.filter(lost | models.Q(state=Departure.State.WAITING)).order_by("pk")


class Departure(models.Model):
    """A model is written in a form that others read, and pushed where a repository is named.

        waiting → working → complete
                          ↘ failed

    A worker holds it by a lease; one that dies leaves it to the next, which begins anew.
    """

    class Form(models.TextChoices):
        STORED = "stored", "As it is stored"
        BF16 = "bf16", "Merged, bf16"
        FP32 = "fp32", "Merged, fp32"
        ADAPTER = "adapter", "The adapter alone"

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        WORKING = "working", "Working"
        COMPLETE = "complete", "Complete"
        FAILED = "failed", "Failed"

    artifact = models.ForeignKey("training.Artifact", on_delete=models.CASCADE, related_name="departures")
    form = models.CharField(max_length=8, choices=Form)
    repo = models.CharField(max_length=200, blank=True)  # on the hub; empty: an archive to download
    private = models.BooleanField(default=True)
    base = models.CharField(max_length=200, blank=True)  # of an adapter: what others load it onto
    licence = models.CharField(max_length=60, blank=True)  # as the hub names it, such as apache-2.0
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    percent = models.PositiveSmallIntegerField(default=0)
    message = models.TextField(blank=True)
    url = models.URLField(max_length=500, blank=True)  # of the commit
    worker = models.CharField(max_length=100, blank=True)
    attempt = models.PositiveIntegerField(default=0)
    leased_until = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = DepartureQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        where = f" to {self.repo}" if self.repo else ""
        return f"departure {self.pk} of {self.artifact}{where}"

    @property
    def folder(self) -> Path:
        """One for each attempt: the child of a worker that froze, and was taken for dead, may still write."""
        return Path(settings.EXPORTS_DIR) / f"{self.pk}.{self.attempt}"

    @property
    def is_live(self) -> bool:
        return self.state in (self.State.WAITING, self.State.WORKING)

    @property
    def is_here(self) -> bool:
        """Whether its files can still be downloaded."""
        return self.state == self.State.COMPLETE and (self.folder / "model").is_dir()
