"""A project's constitution: written principles by which a policy criticises itself and a model judges."""

from typing import NotRequired, TypedDict

from django.db import models
from django.urls import reverse

from labeling.models.projects import Project


class Principle(TypedDict):
    """A principle as a manager wrote it. What is not given is made from the text (labeling.constitutions)."""

    text: str
    critique: NotRequired[str]  # asks the policy to criticise its own answer
    revision: NotRequired[str]  # asks it to write the answer again
    comparison: NotRequired[str]  # asks a judge which of two answers is better


class Constitution(models.Model):
    """Never edited: a change is a new version, and runs and datasets point at the one they used."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="constitutions")
    version = models.PositiveIntegerField()
    principles = models.JSONField()  # list[Principle], at least one
    note = models.CharField(max_length=200, blank=True, help_text="Why it changed, in a few words.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["project", "-version"]
        constraints = [
            models.UniqueConstraint(fields=["project", "version"], name="constitution_versions_are_unique")
        ]

    def __str__(self) -> str:
        return f"Constitution v{self.version}"

    def get_absolute_url(self) -> str:
        return f"{reverse('constitution', args=[self.project.slug])}?version={self.version}"
