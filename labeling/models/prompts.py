"""What is asked, and what was written in answer."""

from typing import TypedDict

from django.db import models

from labeling.models.policies import Policy
from labeling.models.projects import Project


class Message(TypedDict):
    """One turn, as in TRL's conversational format."""

    role: str
    content: str


class Prompt(models.Model):
    class Split(models.TextChoices):
        TRAIN = "train"
        TEST = "test"  # held out of training in every round

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    messages = models.JSONField()  # list[Message]; the last one is the user's
    html = models.JSONField(default=list)  # the same turns, sanitised: list[str]
    digest = models.CharField(max_length=64)  # sha256 of the canonical messages
    split = models.CharField(max_length=5, choices=Split)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["project", "digest"], name="prompts_are_unique")]
        indexes = [models.Index(fields=["project", "split", "id"])]

    def __str__(self) -> str:
        return str(self.messages[-1]["content"])[:80] if self.messages else f"prompt {self.pk}"


class Completion(models.Model):
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="completions")
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="completions")
    text = models.TextField()
    html = models.TextField(blank=True)  # sanitised, made once by labeling.rendering
    # Temperature, top_p, seed, tokens, finish ("eos" or "length"), source id of an import.
    sampling = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.text[:80]
