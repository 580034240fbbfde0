"""A project's story, read from the database: its turns, newest first, and the next sensible step.

A turn is a round with what came of it: datasets frozen from it (and at most earlier rounds), runs on
them, the policies they left. Policies that no run made stand at the beginning. Runs that write data by a
constitution, and the data, stand in the turn of their time.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Count, Q
from django.urls import reverse

from labeling.models import Assignment, Policy, PreferenceDataset, Project, Round
from training.ingredients import MAKING, can_be_learnt_from, holds_labels, policy_method_for
from training.models import Artifact, GateDecision, Run

State = Run.State
DOING = {
    State.CHECKING: "is being checked",
    State.QUEUED: "waits for the device",
    State.RUNNING: "is under way",
}


@dataclass
class DatasetStep:
    dataset: PreferenceDataset
    runs: list[Run] = field(default_factory=list)


@dataclass
class Turn:
    """`round` is None for what came before the first round: imported datasets, the first policies."""

    round: Round | None
    done: int = 0
    wanted: int = 0
    sampling: list[Run] = field(default_factory=list)
    making: list[Run] = field(default_factory=list)  # runs that write by a constitution
    datasets: list[DatasetStep] = field(default_factory=list)
    policies: list[Policy] = field(default_factory=list)
    decision: GateDecision | None = None  # on this round's new policy

    @property
    def is_judged(self) -> bool:
        return self.wanted > 0 and self.done >= self.wanted


@dataclass(frozen=True)
class Action:
    """The next sensible step: a link, or a button that posts."""

    label: str
    why: str
    url: str
    post: bool = False


@dataclass
class Story:
    project: Project
    turns: list[Turn]  # oldest first
    runs: list[Run]  # newest first
    policies: list[Policy]  # oldest first
    decisions: list[GateDecision]  # oldest first
    prompts: int

    @property
    def newest_first(self) -> list[Turn]:
        return self.turns[::-1]

    @property
    def labels(self) -> int:
        return sum(turn.done for turn in self.turns)

    @property
    def candidate(self) -> Policy | None:
        """The newest policy that waits for people's judgement, if it is newer than the current one."""
        waiting = [p for p in self.policies if p.state == Policy.State.CANDIDATE]
        return waiting[-1] if waiting else None

    def decision_on(self, policy: Policy) -> GateDecision | None:
        return next((d for d in reversed(self.decisions) if d.policy_id == policy.pk), None)


def story_of(project: Project) -> Story:
    """Read the whole story; ten queries or so, whatever its length."""
    rounds = list(project.rounds.select_related("new_policy", "old_policy").order_by("number"))
    counts = {
        row["round"]: row
        for row in Assignment.objects.filter(round__project=project)
        .values("round")
        .order_by()
        .annotate(done=Count("pk", filter=Q(state=Assignment.State.DONE)), wanted=Count("pk"))
    }
    decisions = list(
        GateDecision.objects.filter(policy__project=project)
        .select_related("policy", "against", "round", "decided_by")
        .order_by("pk")
    )
    runs = list(
        Run.objects.filter(project=project).select_related(
            "dataset", "round", "artifact__policy", "policy", "made_dataset"
        )
    )
    policies = list(project.policies.select_related("parent", "artifact__run").order_by("pk"))
    before = Turn(round=None)
    turns = {
        r.pk: Turn(
            round=r,
            done=counts[r.pk]["done"] if r.pk in counts else 0,
            wanted=counts[r.pk]["wanted"] if r.pk in counts else 0,
            decision=next((d for d in reversed(decisions) if d.round_id == r.pk), None),
        )
        for r in rounds
    }
    _place_datasets(project, runs, turns, before)
    _place_policies(policies, turns, before)
    for run in reversed(runs):
        if run.round_id in turns:
            turns[run.round_id].sampling.append(run)
        elif run.method in MAKING:
            moment = run.made_dataset.created_at if run.made_dataset else run.created_at
            _turn_at(moment, turns, before).making.append(run)
    first = [before] if before.making or before.datasets or before.policies else []
    return Story(
        project=project,
        turns=[*first, *turns.values()],
        runs=runs,
        policies=policies,
        decisions=decisions,
        prompts=project.prompts.count(),
    )


def _turn_at(moment: datetime, turns: dict[int, Turn], before: Turn) -> Turn:
    """The turn whose round was the newest then."""
    earlier = [turn for turn in turns.values() if turn.round and turn.round.created_at < moment]
    return earlier[-1] if earlier else before


def _turn_of(dataset: PreferenceDataset, turns: dict[int, Turn], before: Turn) -> Turn:
    if dataset.source == PreferenceDataset.Source.AI:  # no round's labels: it stands where it was made
        return _turn_at(dataset.created_at, turns, before)
    newest = max(dataset.rounds.all(), key=lambda r: r.number, default=None)  # prefetched
    return turns[newest.pk] if newest is not None else before


def _place_datasets(project: Project, runs: list[Run], turns: dict[int, Turn], before: Turn) -> None:
    runs_on = defaultdict(list)
    for run in reversed(runs):
        runs_on[run.dataset_id].append(run)
    for dataset in project.datasets.prefetch_related("rounds").order_by("pk"):
        _turn_of(dataset, turns, before).datasets.append(DatasetStep(dataset, runs_on[dataset.pk]))


def _place_policies(policies: list[Policy], turns: dict[int, Turn], before: Turn) -> None:
    turn_of_run = {
        run.pk: turn for turn in [before, *turns.values()] for step in turn.datasets for run in step.runs
    }
    for policy in policies:
        artifact = artifact_of(policy)
        turn = turn_of_run.get(artifact.run_id, before) if artifact else before
        turn.policies.append(policy)


def artifact_of(policy: Policy) -> Artifact | None:
    try:
        return policy.artifact
    except Artifact.DoesNotExist:
        return None


# ---- the next step


def next_action(story: Story) -> Action | None:
    """The one step that brings the loop on; None when only waiting helps."""
    return _prepare(story) or _follow_runs(story) or _judge(story) or _learn(story)


def _prepare(story: Story) -> Action | None:
    slug = story.project.slug
    if not story.prompts:
        return Action(
            "Import prompts", "There is nothing to ask a policy yet.", reverse("import", args=[slug])
        )
    if not story.project.protocols.exists():
        return Action(
            "Say what raters are asked",
            "Choose how completions are judged before the first round.",
            reverse("project_settings", args=[slug]),
        )
    return None


def _follow_runs(story: Story) -> Action | None:
    """A run that is under way or needs somebody; of each method the newest counts.

    What stopped before the newest round began is history: the loop went on without it.
    """
    newest = {run.method: run for run in reversed(story.runs)}.values()
    last_round = story.turns[-1].round if story.turns else None
    for run in sorted(newest, key=lambda run: -run.pk):
        if run.is_live or last_round is None or run.created_at >= last_round.created_at:
            action = _follow(run)
            if action is not None:
                return action
    return None


def _follow(run: Run) -> Action | None:
    name, url = f"Run {run.pk} ({run.get_method_display()})", run.get_absolute_url()
    if run.state == State.READY:
        return Action(f"Look at run {run.pk} and start it", f"{name} is checked and can start.", url)
    if run.is_live:
        return Action(f"Watch run {run.pk}", f"{name} {DOING[State(run.state)]}.", url)
    if run.state in (State.FAILED, State.REFUSED):
        return Action(f"See what stopped run {run.pk}", run.message or f"{name} did not end well.", url)
    return None


def _judge(story: Story) -> Action | None:
    turn = story.turns[-1] if story.turns else None
    if turn is None or turn.round is None or turn.round.state == Round.State.CLOSED:
        return None
    this = turn.round
    if this.state == Round.State.WAITING:
        return Action(f"See {this}", "It waits for completions.", this.get_absolute_url())
    if turn.is_judged:
        return Action(
            f"Close round {this.number}",
            f"All {turn.wanted} labels are in.",
            reverse("round_close", args=[this.pk]),
            post=True,
        )
    return Action(
        f"Judge round {this.number}",
        f"{turn.done} of {turn.wanted} labels are in.",
        reverse("judge", args=[this.pk]),
    )


def _learn(story: Story) -> Action | None:
    """From judged rounds to a dataset, a reward model, a policy, and back to the raters."""
    slug = story.project.slug
    turn = story.turns[-1] if story.turns else Turn(round=None)
    of_people = [s for s in turn.datasets if s.dataset.source != PreferenceDataset.Source.AI]
    steps = of_people if turn.round else turn.datasets
    if turn.round is None and not steps and story.project.collections.exists():
        return Action(
            "Freeze a dataset",
            "What files brought in can be learnt from once it is frozen.",
            reverse("dataset_new", args=[slug]),
        )
    if turn.round is None and not steps:
        return Action(
            "Open the first round",
            "Prompts are there; people have not judged yet.",
            reverse("round_new", args=[slug]),
        )
    if not steps:
        return Action(
            "Freeze a dataset",
            f"Round {turn.round.number if turn.round else 0} is judged and closed.",
            reverse("dataset_new", args=[slug]),
        )
    step = next((s for s in reversed(steps) if holds_labels(s.dataset)), steps[-1])
    complete = [run for run in step.runs if run.state == State.COMPLETE]
    new_run = reverse("run_new", args=[slug])
    has_learnt = any(run.makes == "reward_model" for run in complete)
    if not has_learnt and can_be_learnt_from(step.dataset, Run.Method.REWARD_MODEL):
        return Action(
            "Train a reward model",
            f"The dataset {step.dataset} is frozen.",
            f"{new_run}?method=reward_model&dataset={step.dataset.pk}",
        )
    if not any(run.makes == "policy" for run in complete):
        judged = f"A reward model has learnt from {step.dataset} and can judge what comes out."
        return Action(
            "Train a policy",
            judged if has_learnt else f"The dataset {step.dataset} is frozen.",
            f"{new_run}?method={policy_method_for(step.dataset)}&dataset={step.dataset.pk}",
        )
    return Action(
        "Open the next round",
        f"Let people judge {story.candidate}." if story.candidate else "The loop is ready for its next turn.",
        reverse("round_new", args=[slug]),
    )
