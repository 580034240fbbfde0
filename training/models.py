"""A run, what it reports, what it leaves, and the gate its policy has to pass."""

from pathlib import Path
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.urls import reverse

from labeling.models import Constitution, Policy, PreferenceDataset, Project, Round
from labeling.models.projects import AnyUser
from training.rlhf.methods import METHODS


class RunQuerySet(models.QuerySet["Run"]):
    def managed_by(self, user: AnyUser) -> Self:
        return self.filter(project__in=Project.objects.managed_by(user))

    def waiting_for_a_device(self) -> Self:
        """Queued, or left running by a worker that is gone. Sampling goes first: raters wait for it."""
        lost = models.Q(state=Run.State.RUNNING, leased_until__lt=Now())
        return self.filter(lost | models.Q(state=Run.State.QUEUED)).order_by(
            models.Case(
                models.When(state=Run.State.RUNNING, then=0),
                models.When(method=Run.Method.SAMPLE, then=1),
                default=2,
            ),
            "pk",
        )

    def waiting_for_a_check(self) -> Self:
        free = models.Q(leased_until__isnull=True) | models.Q(leased_until__lt=Now())
        return self.filter(free, state=Run.State.CHECKING).order_by("pk")


class Run(models.Model):
    """One attempt at one stage, and itself the queue: a row with a lease and a heartbeat.

        checking → ready → queued → running → complete
                 ↘ refused    ↖ resume ↙  ↘ failed, cancelled

    A worker that is told to stop puts its run back to `queued`. A worker that dies leaves it `running`
    with a lease that runs out: then the next one takes it up.
    """

    class Method(models.TextChoices):
        """The names of training.rlhf.methods.METHODS, which says of each what it takes and makes."""

        REWARD_MODEL = "reward_model", METHODS["reward_model"].label
        PRETRAINING = "pretraining", METHODS["pretraining"].label
        SFT = "sft", METHODS["sft"].label
        DPO = "dpo", METHODS["dpo"].label
        KTO = "kto", METHODS["kto"].label
        PPO = "ppo", METHODS["ppo"].label
        RLOO = "rloo", METHODS["rloo"].label
        GRPO = "grpo", METHODS["grpo"].label
        REJECTION_SAMPLING = "rejection_sampling", METHODS["rejection_sampling"].label
        DISTILLATION = "distillation", METHODS["distillation"].label
        JUDGE_AUDIT = "judge_audit", METHODS["judge_audit"].label
        CRITIQUE_REVISION = "critique_revision", METHODS["critique_revision"].label
        AI_PREFERENCES = "ai_preferences", METHODS["ai_preferences"].label
        SAMPLE = "sample", METHODS["sample"].label

    class State(models.TextChoices):
        CHECKING = "checking", "Checking"  # preflight wanted or under way
        READY = "ready", "Ready to start"  # preflight passed, a manager decides
        REFUSED = "refused", "Refused"  # preflight says why
        QUEUED = "queued", "Queued"
        RUNNING = "running", "Running"
        COMPLETE = "complete", "Complete"
        CANCELLED = "cancelled", "Cancelled"
        FAILED = "failed", "Failed"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="runs")
    method = models.CharField(max_length=24, choices=Method)
    state = models.CharField(max_length=9, choices=State)
    config = models.JSONField(default=dict)  # training.rlhf.config.RunConfig as JSON
    dataset = models.ForeignKey(
        PreferenceDataset, null=True, blank=True, on_delete=models.PROTECT, related_name="runs"
    )
    policy = models.ForeignKey(  # where it starts from
        Policy, null=True, blank=True, on_delete=models.PROTECT, related_name="runs"
    )
    reward_model = models.ForeignKey(
        "training.Artifact", null=True, blank=True, on_delete=models.PROTECT, related_name="used_by"
    )
    round = models.ForeignKey(  # the round that a sampling run writes for
        Round, null=True, blank=True, on_delete=models.CASCADE, related_name="sampling_runs"
    )
    ensemble = (
        models.ForeignKey(  # the first of reward models that differ by seed alone; of the first, itself
            "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="ensemble_runs"
        )
    )
    constitution = models.ForeignKey(  # by which a run writes or judges
        Constitution, null=True, blank=True, on_delete=models.PROTECT, related_name="runs"
    )
    made_dataset = models.OneToOneField(  # what a run that writes data left
        PreferenceDataset, null=True, blank=True, on_delete=models.SET_NULL, related_name="made_by"
    )
    preflight = models.JSONField(default=dict, blank=True)  # the child's preflight.json
    evaluation = models.JSONField(default=dict, blank=True)  # the child's evaluation.json
    then_next_round = models.BooleanField(default=True)  # a new policy goes back to the raters by itself
    next_round = models.OneToOneField(  # the round that this run's policy was put into
        Round, null=True, blank=True, on_delete=models.SET_NULL, related_name="made_by"
    )
    start_when_ready = models.BooleanField(default=False)  # no manager waits between preflight and start
    cancel_asked = models.BooleanField(default=False)
    attempt = models.PositiveIntegerField(default=0)
    fruitless_attempts = models.PositiveSmallIntegerField(default=0)  # died in a row without a new checkpoint
    checkpoint_step = models.PositiveIntegerField(default=0)  # where the next attempt goes on
    # The lease. While it holds, only this worker may write the row.
    worker = models.CharField(max_length=100, blank=True)
    device = models.CharField(max_length=40, blank=True)
    leased_until = models.DateTimeField(null=True, blank=True)
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    last_seq = models.PositiveIntegerField(default=0)  # last line of progress.jsonl that is stored
    message = models.TextField(blank=True)  # what it does now, or why it ended: what, where, what to do
    stderr_tail = models.TextField(blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="runs"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["device"], condition=models.Q(state="running"), name="one_run_at_a_time_on_a_device"
            ),
            models.CheckConstraint(
                condition=~models.Q(state="running")
                | (models.Q(leased_until__isnull=False) & ~models.Q(worker="")),
                name="a_running_run_is_leased",
            ),
            models.UniqueConstraint(
                fields=["round"],
                condition=models.Q(method="sample") & ~models.Q(state__in=["cancelled", "failed", "refused"]),
                name="one_sampling_run_for_a_round",
            ),
        ]
        indexes = [models.Index(fields=["state", "id"])]

    def __str__(self) -> str:
        return f"Run {self.pk} ({self.get_method_display()})"

    def get_absolute_url(self) -> str:
        return reverse("run", args=[self.pk])

    @property
    def makes(self) -> str:
        """reward_model, policy, dataset, completions or figures."""
        return METHODS[self.method].makes

    @property
    def folder(self) -> Path:
        return Path(settings.RUNS_DIR) / str(self.pk)

    @property
    def is_live(self) -> bool:
        """Something is going to happen to it without a person."""
        return self.state in (self.State.CHECKING, self.State.QUEUED, self.State.RUNNING)

    @property
    def can_start(self) -> bool:
        return self.state == self.State.READY

    @property
    def can_cancel(self) -> bool:
        return (self.is_live and not self.cancel_asked) or self.state == self.State.READY

    @property
    def can_resume(self) -> bool:
        """Go on from the last checkpoint; for a refused run: be checked again."""
        if self.method == self.Method.SAMPLE:  # refused: the round itself asks for what cannot be written
            is_wanted = self.round is not None and self.round.state == Round.State.WAITING
            return is_wanted and self.has_stopped and self.state != self.State.REFUSED
        return self.has_stopped

    @property
    def has_stopped(self) -> bool:
        """Without a result."""
        return self.state in (self.State.CANCELLED, self.State.FAILED, self.State.REFUSED)


class RunDataset(models.Model):
    """A further dataset that a run learns from, beside `Run.dataset`: a part of its recipe's mixture."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="mixture")
    dataset = models.ForeignKey(PreferenceDataset, on_delete=models.PROTECT, related_name="mixed_into")
    name = models.SlugField(max_length=80)  # in the recipe, and of its folder
    weight = models.FloatField(default=1.0)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["run", "dataset"], name="a_dataset_once_in_a_mixture"),
            models.UniqueConstraint(fields=["run", "name"], name="names_in_a_mixture_are_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.dataset} × {self.weight:g} in run {self.run_id}"


class Metric(models.Model):
    """One line of progress.jsonl."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="metrics")
    seq = models.PositiveIntegerField()
    step = models.PositiveIntegerField()
    values = models.JSONField()  # TRL's metric names -> numbers
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["run", "seq"]
        constraints = [models.UniqueConstraint(fields=["run", "seq"], name="a_line_of_progress_once")]

    def __str__(self) -> str:
        return f"step {self.step} of run {self.run_id}"


class Artifact(models.Model):
    """What a run leaves: a reward model, or a policy (then `policy` names it in the project)."""

    class Kind(models.TextChoices):
        REWARD_MODEL = "reward_model"
        POLICY = "policy"

    run = models.OneToOneField(Run, on_delete=models.PROTECT, related_name="artifact")
    kind = models.CharField(max_length=12, choices=Kind)
    folder = models.CharField(max_length=500)  # absolute
    policy = models.OneToOneField(
        Policy, null=True, blank=True, on_delete=models.PROTECT, related_name="artifact"
    )
    lineage = models.JSONField(default=dict)  # dataset digest, parent, recipe, seed, library versions
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{self.kind} of run {self.run_id}"


class GateDecision(models.Model):
    """Why a policy was promoted or not: the humans' win rate, or a manager's reason."""

    policy = models.ForeignKey(Policy, on_delete=models.CASCADE, related_name="gate_decisions")
    against = models.ForeignKey(Policy, null=True, on_delete=models.PROTECT, related_name="+")
    round = models.ForeignKey(
        Round, null=True, blank=True, on_delete=models.PROTECT, related_name="gate_decisions"
    )
    promoted = models.BooleanField()
    win_rate = models.FloatField(null=True)
    low = models.FloatField(null=True)
    high = models.FloatField(null=True)
    labels = models.PositiveIntegerField(default=0)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(decided_by__isnull=True) | ~models.Q(reason=""),
                name="an_override_has_a_reason",
            )
        ]

    def __str__(self) -> str:
        return f"{self.policy} {'promoted' if self.promoted else 'not promoted'}"


class Worker(models.Model):
    """A training worker that was seen: pages say when none is alive."""

    name = models.CharField(max_length=100, unique=True)
    device = models.CharField(max_length=40)
    hub = models.CharField(max_length=200, blank=True)  # where it may push to; empty without a token
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


# Django finds models by this module.
from training.leaving.models import Departure as Departure  # noqa: E402
from training.playground.models import Chat as Chat  # noqa: E402
from training.playground.models import ChatSide as ChatSide  # noqa: E402
from training.playground.models import ServedPolicy as ServedPolicy  # noqa: E402
from training.sweep_models import Sweep as Sweep  # noqa: E402 - Django looks for models in this module
from training.sweep_models import Trial as Trial  # noqa: E402
