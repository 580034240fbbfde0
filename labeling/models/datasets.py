"""A preference dataset: frozen judgements, ready to train on."""

from typing import Self

from django.db import models
from django.urls import reverse

from labeling.models.collections import Collection
from labeling.models.constitutions import Constitution
from labeling.models.projects import AnyUser, Project
from labeling.models.rounds import Round


class PreferenceDatasetQuerySet(models.QuerySet["PreferenceDataset"]):
    def managed_by(self, user: AnyUser) -> Self:
        return self.filter(project__in=Project.objects.managed_by(user))


class PreferenceDataset(models.Model):
    class Rule(models.TextChoices):
        EACH_LABEL = "each_label", "Each label is a row"
        MAJORITY = "majority", "Majority of the raters"
        MEAN_STRENGTH = "mean_strength", "Mean strength of the raters"

    class Source(models.TextChoices):
        """Who judged, or wrote. Names of training.rlhf.mixture_settings.SOURCES."""

        HUMAN = "human", "People"
        IMPORT = "import", "Imported"
        AI = "ai", "AI"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="datasets")
    name = models.CharField(max_length=120)
    rounds = models.ManyToManyField(Round, related_name="datasets")
    collections = models.ManyToManyField(Collection, related_name="datasets", blank=True)
    rule = models.CharField(max_length=16, choices=Rule)
    source = models.CharField(max_length=6, choices=Source, default=Source.HUMAN)
    constitution = models.ForeignKey(  # by which an AI wrote or judged
        Constitution, null=True, blank=True, on_delete=models.PROTECT, related_name="datasets"
    )
    folder = models.CharField(max_length=300, unique=True)  # below settings.DATASETS_DIR
    manifest = models.JSONField(default=dict)
    digest = models.CharField(max_length=64)  # sha256 of manifest.json
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PreferenceDatasetQuerySet.as_manager()

    class Meta:
        ordering = ["project", "pk"]
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="dataset_names_are_unique")]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("dataset", args=[self.pk])
