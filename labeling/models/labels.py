"""Who judges what, and what they said.

A task has as many assignments as labels are wanted, made when the round opens: overlap is the number
of rows, and no code path can add one. A rater takes an open assignment by a lease. A label is an event
that is never edited; the assignment points at the one that counts.
"""

from django.conf import settings
from django.db import models

from labeling.models.projects import Protocol
from labeling.models.rounds import Round, Task


class Assignment(models.Model):
    class State(models.TextChoices):
        OPEN = "open"
        LEASED = "leased"
        DONE = "done"
        WITHDRAWN = "withdrawn"  # the round closed before anybody answered

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="assignments")
    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="assignments")
    slot = models.PositiveSmallIntegerField()  # 0 .. overlap - 1
    position = models.BigIntegerField()  # order in which the round gives out its open assignments
    state = models.CharField(max_length=9, choices=State, default=State.OPEN)
    rater = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="assignments"
    )
    leased_at = models.DateTimeField(null=True, blank=True)
    leased_until = models.DateTimeField(null=True, blank=True)
    shown = models.JSONField(default=list)  # ids of the completions in the order on this rater's screen
    label = models.OneToOneField(
        "labeling.Label", null=True, blank=True, on_delete=models.PROTECT, related_name="counts_for"
    )

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["task", "slot"], name="one_assignment_for_each_slot"),
            models.UniqueConstraint(fields=["task", "rater"], name="one_assignment_of_a_task_for_each_rater"),
            models.UniqueConstraint(
                fields=["round", "rater"],
                condition=models.Q(state="leased"),
                name="one_lease_for_each_rater_in_a_round",
            ),
            models.CheckConstraint(
                condition=(
                    models.Q(state__in=["open", "withdrawn"], rater__isnull=True, label__isnull=True)
                    | models.Q(
                        state="leased", rater__isnull=False, leased_until__isnull=False, label__isnull=True
                    )
                    | models.Q(state="done", rater__isnull=False, label__isnull=False)
                ),
                name="assignment_state_fits_its_columns",
            ),
        ]
        indexes = [
            models.Index(
                fields=["round", "position"], condition=models.Q(state="open"), name="open_assignments"
            ),
            models.Index(fields=["round", "leased_until"], condition=models.Q(state="leased"), name="leases"),
        ]

    def __str__(self) -> str:
        return f"assignment {self.pk} ({self.state})"


class Label(models.Model):
    """One judgement, append-only.

    `value` by kind of protocol; completions are named by id, never by place on screen:
        rating      {"scores": {criterion key: whole number}}
        comparison  {"outcome": "preferred", "preferred": completion id, "strength": 1 (slightly) .. 4 (far)}
                    {"outcome": "tie"} or {"outcome": "both_bad"}
        ranking     {"ranks": {completion id as text: rank from 1, equal = tie}}; missing = not ranked
    A retraction (undo) is an event of its own with value null.
    """

    assignment = models.ForeignKey(Assignment, on_delete=models.PROTECT, related_name="events")
    rater = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="labels")
    protocol = models.ForeignKey(Protocol, on_delete=models.PROTECT, related_name="labels")
    value = models.JSONField(null=True)
    shown = models.JSONField(default=list)
    seconds = models.FloatField(default=0)
    supersedes = models.OneToOneField("self", null=True, blank=True, on_delete=models.PROTECT)
    key = models.UUIDField(unique=True)  # one for each showing of the form: a repeated save changes nothing
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"label {self.pk}"


class Skip(models.Model):
    """A rater passed a task by and is not asked it again."""

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="skips")
    rater = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="skips")
    reason = models.CharField(max_length=200)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["task", "rater"], name="one_skip_of_a_task_for_each_rater")
        ]

    def __str__(self) -> str:
        return f"{self.rater} skipped task {self.task_id}: {self.reason}"


class LostLease(models.Model):
    """A lease that ended without a label: expired, log-out, another task undone, the round closed.

    It remembers what was on the screen, so that a label which comes late still counts while a slot is free.
    """

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="lost_leases")
    rater = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="lost_leases")
    shown = models.JSONField(default=list)
    lost_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["task", "rater"])]

    def __str__(self) -> str:
        return f"{self.rater} lost task {self.task_id}"


class RaterProgress(models.Model):
    """How far a rater is in a round. `cursor`: every open assignment at or before it is no use to them."""

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="progress")
    rater = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="progress")
    cursor = models.BigIntegerField(default=-1)
    labels = models.PositiveIntegerField(default=0)  # labels that count

    class Meta:
        constraints = [models.UniqueConstraint(fields=["round", "rater"], name="one_progress_for_each_rater")]

    def __str__(self) -> str:
        return f"{self.rater} in {self.round}: {self.labels}"
