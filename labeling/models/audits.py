"""An audit: people judge a sample of what an AI judged, without seeing what it said."""

from typing import TypedDict

from django.db import models

from labeling.models.datasets import PreferenceDataset
from labeling.models.rounds import Round


class AuditedPair(TypedDict):
    """What the AI says of two completions, by their ids: how likely the first is the better one."""

    row: int  # of the dataset's pairs, those to train on first
    first: int
    second: int
    p: float


class Audit(models.Model):
    dataset = models.ForeignKey(PreferenceDataset, on_delete=models.PROTECT, related_name="audits")
    round = models.OneToOneField(Round, on_delete=models.CASCADE, related_name="audit")
    pairs = models.JSONField()  # list[AuditedPair]; raters never see it
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"audit of {self.dataset} in {self.round}"
