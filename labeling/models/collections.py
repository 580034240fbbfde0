"""What comes in by a file and is no comparison: demonstrations, single judgements, texts of a field.

Nobody is asked for them, so they belong to no round. A dataset is frozen from them as from closed rounds.
"""

from django.db import models

from labeling.models.projects import Project
from labeling.models.prompts import Completion, Prompt


class Collection(models.Model):
    """The examples of one file. It never changes once its import is shown."""

    class Kind(models.TextChoices):
        """Named as the tables that they become."""

        DEMONSTRATIONS = "demonstrations", "Demonstrations"
        UNPAIRED = "unpaired", "Single judgements"
        TEXTS = "texts", "Texts"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="collections")
    kind = models.CharField(max_length=16, choices=Kind)
    name = models.CharField(max_length=120)  # of the file
    rows = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["project", "pk"]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.name}"


class Example(models.Model):
    """One row: a completion to imitate, a completion that is good or not, or a text."""

    collection = models.ForeignKey(Collection, on_delete=models.CASCADE, related_name="examples")
    prompt = models.ForeignKey(
        Prompt, null=True, blank=True, on_delete=models.PROTECT, related_name="examples"
    )
    completion = models.ForeignKey(
        Completion, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    good = models.BooleanField(null=True, blank=True)  # of a single judgement
    text = models.TextField(blank=True)
    split = models.CharField(max_length=5, choices=Prompt.Split, blank=True)  # of a text; else the prompt's
    digest = models.CharField(max_length=64, db_index=True)  # of all it says: a file may come in again

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["collection", "digest"], name="an_example_once_in_a_collection"),
            models.CheckConstraint(
                condition=models.Q(prompt__isnull=True, completion__isnull=True, good__isnull=True)
                & ~models.Q(text="")
                & ~models.Q(split="")
                | models.Q(prompt__isnull=False, completion__isnull=False, text="", split=""),
                name="an_example_is_a_completion_or_a_text",
            ),
        ]

    def __str__(self) -> str:
        return f"example {self.pk}"
