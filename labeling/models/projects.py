"""A project, who belongs to it, and what its raters are asked."""

from typing import Self

from django.conf import settings
from django.contrib.auth.models import AbstractUser, AnonymousUser
from django.db import models
from django.urls import reverse

AnyUser = AbstractUser | AnonymousUser

# Begins the slug of a project that no page lists (labeling.imports.staging); no name makes such a slug.
HIDDEN = "_"


class ProjectQuerySet(models.QuerySet["Project"]):
    def visible_to(self, user: AnyUser) -> Self:
        """Projects that the user belongs to in any role; every project for a superuser."""
        if user.is_superuser:
            return self.exclude(slug__startswith=HIDDEN)
        return self.filter(memberships__user_id=user.pk).distinct()

    def managed_by(self, user: AnyUser) -> Self:
        if user.is_superuser:
            return self.exclude(slug__startswith=HIDDEN)
        return self.filter(memberships__user_id=user.pk, memberships__role=Membership.Role.MANAGER)


class Project(models.Model):
    name = models.CharField(max_length=120, unique=True)
    slug = models.SlugField(max_length=140, unique=True)
    guidelines = models.TextField(blank=True, help_text="Markdown, shown beside every task.")
    # The policy that people prefer so far: the old side of the gate, the parent of the next run.
    current_policy = models.ForeignKey(
        "labeling.Policy", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    test_percent = models.PositiveSmallIntegerField(
        default=10, help_text="Share of prompts held out of training in every round, in percent."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(test_percent__lte=90), name="project_test_percent_at_most_90"
            )
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("project", args=[self.slug])


class Membership(models.Model):
    class Role(models.TextChoices):
        RATER = "rater"
        MANAGER = "manager"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "user"], name="one_role_in_a_project")]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.project}"


class Protocol(models.Model):
    """What raters are asked. Never edited: a change is a new version, and a label points at its own.

    `options` by kind:
        rating      {"criteria": [{"key", "name", "help"}...], "low": 1, "high": 5}
        comparison  {"strengths": 4, "tie": true, "both_bad": true}
        ranking     {"ties": true, "partial": true}
    """

    class Kind(models.TextChoices):
        RATING = "rating", "Rating"
        COMPARISON = "comparison", "Comparison"
        RANKING = "ranking", "Ranking"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="protocols")
    version = models.PositiveIntegerField()
    kind = models.CharField(max_length=12, choices=Kind)
    question = models.CharField(max_length=300, help_text="The question above the completions.")
    options = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["project", "-version"]
        constraints = [
            models.UniqueConstraint(fields=["project", "version"], name="protocol_versions_are_unique")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} v{self.version}"
