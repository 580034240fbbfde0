"""A chat with two sides, and the policies that are held in memory to answer in it."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from labeling.models import Policy, Project

MOST_TOKENS = 4096


class Chat(models.Model):
    """What one manager says to two policies of a project."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="chats")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="chats")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["project", "user"], name="one_chat_of_a_person_in_a_project")
        ]

    def __str__(self) -> str:
        return f"chat {self.pk} in {self.project}"


class ChatSide(models.Model):
    """One of the two: a policy, how it draws, and its own history.

    `messages`: {role, content}, and of an answer also `policy`, `finish` (stop, length, stopped), `tokens`,
    `first_ms` (until its first words came), `seconds` and `seed`. `turn` counts the changes: an answer is
    stored only where nothing else happened meanwhile.
    """

    chat = models.ForeignKey(Chat, on_delete=models.CASCADE, related_name="sides")
    place = models.PositiveSmallIntegerField()  # 0 left, 1 right
    policy = models.ForeignKey(Policy, on_delete=models.CASCADE, related_name="+")
    temperature = models.FloatField(default=0.8, validators=[MinValueValidator(0), MaxValueValidator(5)])
    top_p = models.FloatField(default=1.0, validators=[MinValueValidator(0.01), MaxValueValidator(1)])
    max_tokens = models.PositiveIntegerField(
        default=256, validators=[MinValueValidator(1), MaxValueValidator(MOST_TOKENS)]
    )
    seed = models.PositiveIntegerField(null=True, blank=True, validators=[MaxValueValidator(2**31 - 1)])
    messages = models.JSONField(default=list)
    turn = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["chat", "place"]
        constraints = [models.UniqueConstraint(fields=["chat", "place"], name="two_sides_of_a_chat")]

    def __str__(self) -> str:
        return f"{self.policy} in {self.chat}"

    @property
    def is_asked(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self.messages) and self.messages[-1]["role"] == "user"


class ServedPolicyQuerySet(models.QuerySet["ServedPolicy"]):
    def wanted(self) -> "ServedPolicyQuerySet":
        return self.filter(wanted_until__gt=Now(), failed=False)

    def free(self) -> "ServedPolicyQuerySet":
        """Nobody holds them in memory, or whoever did is gone."""
        return self.filter(models.Q(leased_until__isnull=True) | models.Q(leased_until__lt=Now()))


class ServedPolicy(models.Model):
    """A policy that somebody wants in memory. A worker takes the row by a lease, as it does a run's.

    `address` is host:port of the child that answers, once it does; `token` is what it wants to be told.
    """

    policy = models.OneToOneField(Policy, on_delete=models.CASCADE, related_name="served")
    wanted_until = models.DateTimeField()  # moves with every message
    used_at = models.DateTimeField()
    failed = models.BooleanField(default=False)  # until it is wanted anew
    message = models.TextField(blank=True)  # why it is not there: what, where, what to do
    worker = models.CharField(max_length=100, blank=True)
    attempt = models.PositiveIntegerField(default=0)
    leased_until = models.DateTimeField(null=True, blank=True)
    address = models.CharField(max_length=100, blank=True)
    token = models.CharField(max_length=100, blank=True)

    objects = ServedPolicyQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        verbose_name_plural = "served policies"

    def __str__(self) -> str:
        return f"{self.policy} in memory"
