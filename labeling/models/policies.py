"""A policy: whatever writes completions, and how far it is trusted.

It is weights, and what stands before every prompt. Neither is ever changed: another prompt is another policy.
"""

from django.db import models
from django.urls import reverse

from labeling.models.projects import Project


class Policy(models.Model):
    class State(models.TextChoices):
        CANDIDATE = "candidate", "Candidate"  # trained, not yet preferred by people
        PROMOTED = "promoted", "Promoted"  # passed the gate, or was the first
        REJECTED = "rejected", "Rejected"
        EXTERNAL = "external", "External"  # only its completions are known: people, imports

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="policies")
    name = models.CharField(max_length=120)
    state = models.CharField(max_length=10, choices=State)
    # A folder on this machine, a hub id, or the address of a server; empty when external.
    location = models.CharField(max_length=500, blank=True)
    model_name = models.CharField(max_length=200, blank=True)  # of a server: what it calls the model
    system_prompt = models.TextField(blank=True)
    # list[Message]: a user's turn and the answer to it in turn; they stand before the prompt.
    examples = models.JSONField(default=list, blank=True)
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="children"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["project", "pk"]
        verbose_name_plural = "policies"
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="policy_names_are_unique")]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("policy", args=[self.pk])

    @property
    def is_prompted(self) -> bool:
        """Whether anything stands before its prompts."""
        return bool(self.system_prompt or self.examples)

    @property
    def is_served(self) -> bool:
        """Whether its weights are behind a server's address: it can be asked, and not trained."""
        return self.location.startswith(("http://", "https://"))
