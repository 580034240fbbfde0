"""One file on its way in, from a browser: what it was, how far it is, and what came of it."""

from typing import Self

from django.conf import settings
from django.db import models
from django.urls import reverse

from labeling.models.projects import AnyUser, Project


class ImportQuerySet(models.QuerySet["Import"]):
    def managed_by(self, user: AnyUser) -> Self:
        return self.filter(project__in=Project.objects.managed_by(user))

    def under_way(self) -> Self:
        return self.filter(state__in=[Import.State.READING, Import.State.STORING])


class Import(models.Model):
    class State(models.TextChoices):
        READING = "reading", "Reading"
        STORING = "storing", "Storing"  # one transaction: it comes in whole or not at all
        COMPLETE = "complete", "Complete"
        REFUSED = "refused", "Refused"  # the file or some of its rows; nothing is stored
        FAILED = "failed", "Failed"
        INTERRUPTED = "interrupted", "Interrupted"  # the server stopped; nothing is stored

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="imports")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)
    name = models.CharField(max_length=200, help_text="Of the file, as the user calls it.")
    form = models.CharField(max_length=20, blank=True, help_text="Empty: recognise it.")
    keep_good = models.BooleanField(default=False)
    upload = models.CharField(max_length=40, unique=True)  # below VAR_DIR/imports while it is under way
    state = models.CharField(max_length=11, choices=State, default=State.READING)
    done = models.BigIntegerField(default=0)  # bytes read
    total = models.BigIntegerField(default=0)
    message = models.TextField(blank=True)  # why it was refused, or failed
    report = models.JSONField(default=dict, blank=True)  # labeling.imports.ImportReport
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = ImportQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"import of {self.name} ({self.state})"

    def get_absolute_url(self) -> str:
        return reverse("import_report", args=[self.pk])

    @property
    def is_under_way(self) -> bool:
        return self.state in {self.State.READING, self.State.STORING}
