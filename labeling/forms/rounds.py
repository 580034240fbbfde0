"""What a manager asks of a round: the protocol and the plan. Defaults work; rare settings are folded away."""

import re
from collections.abc import Sequence
from typing import Any

from django import forms
from django.db.models import QuerySet
from django.forms.boundfield import BoundField
from django.utils.text import slugify

from labeling.models import Policy, Project, Prompt, Protocol
from labeling.rounds import RoundPlan

DEFAULT_QUESTIONS = {
    Protocol.Kind.COMPARISON: "Which is better?",
    Protocol.Kind.RANKING: "Which order is right, best first?",
    Protocol.Kind.RATING: "How good is it?",
}
MOST_PROMPTS = 1_000_000
MOST_CRITERIA = 12
OF_KIND = {
    Protocol.Kind.COMPARISON: ("strengths", "tie", "both_bad"),
    Protocol.Kind.RANKING: ("ties", "partial", "completions_per_task"),
    Protocol.Kind.RATING: ("criteria", "low", "high"),
}
ALLOWANCES = {Protocol.Kind.COMPARISON: ("tie", "both_bad"), Protocol.Kind.RANKING: ("ties", "partial")}
PLAN = ("source", "new_policy", "against", "train_prompts", "test_prompts", "gate_prompts", "overlap")
FOLDED = ("test_overlap", "temperature", "max_new_tokens", "seed")


def _prompts(label: str, help_text: str) -> forms.IntegerField:
    return forms.IntegerField(label=label, help_text=help_text, min_value=0, max_value=MOST_PROMPTS)


class RoundForm(forms.Form):
    question = forms.CharField(max_length=300, help_text="Stands above the completions of every task.")

    # Comparison
    strengths = forms.TypedChoiceField(
        coerce=int,
        choices=[
            (4, "Four: slightly to far"),
            (3, "Three"),
            (2, "Two"),
            (1, "One: just better"),
        ],
        help_text="Steps each way. Stronger preferences become larger margins.",
    )
    tie = forms.BooleanField(required=False, label="Ties are allowed")
    both_bad = forms.BooleanField(required=False, label="“Both bad” is allowed")
    # Ranking
    ties = forms.BooleanField(required=False, label="Ties are allowed")
    partial = forms.BooleanField(required=False, label="Part of the list may be left unranked")
    completions_per_task = forms.IntegerField(
        label="Completions to rank", min_value=2, max_value=16, help_text="In each task."
    )
    # Rating
    criteria = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="One on a line, as “Name: what it means”. The meaning may be left out.",
    )
    low = forms.IntegerField(label="Lowest score", min_value=0, max_value=9)
    high = forms.IntegerField(label="Highest score", min_value=1, max_value=9)

    source = forms.ChoiceField(
        label="Completions",
        choices=[
            ("sample", "New, written now"),
            ("existing", "Already there"),
        ],
        help_text="New ones need a running training worker; raters can start when they are written.",
    )
    new_policy: forms.ModelChoiceField = forms.ModelChoiceField(
        queryset=None,
        required=False,
        label="New policy",
        help_text="Writes the completions, and meets the current policy in the tasks of the gate.",
    )
    against: forms.ModelChoiceField = forms.ModelChoiceField(
        queryset=None,
        required=False,
        help_text="The other side of the gate. Against any but the current policy nothing takes over.",
    )
    train_prompts = _prompts("Prompts to train on", "Their labels may train a model.")
    test_prompts = _prompts("Held-out prompts", "Their labels measure the reward model and never train.")
    gate_prompts = _prompts(
        "Prompts for the gate", "Held-out prompts: new policy against current one, blind."
    )
    overlap = forms.IntegerField(
        label="Labels for each task", min_value=1, max_value=100, help_text="From different raters."
    )

    test_overlap = forms.IntegerField(
        label="Labels for each held-out task",
        min_value=1,
        max_value=100,
        help_text="Two or more show how far raters agree.",
    )
    temperature = forms.FloatField(
        min_value=0, max_value=5, help_text="Of the sampling; 0 is always the likeliest."
    )
    max_new_tokens = forms.IntegerField(label="Longest completion, in tokens", min_value=1, max_value=100_000)
    seed = forms.IntegerField(
        min_value=0, max_value=2**32 - 1, help_text="The same seed chooses the same prompts."
    )

    def __init__(self, *args: Any, project: Project, kind: str, **kwargs: Any) -> None:
        self.project, self.kind = project, Protocol.Kind(kind)
        self.allowances = ALLOWANCES.get(self.kind, ())
        kwargs["initial"] = {**_defaults(project, self.kind), **kwargs.get("initial", {})}
        super().__init__(*args, **kwargs)
        for other, names in OF_KIND.items():
            if other != self.kind:
                for name in names:
                    del self.fields[name]
        choice = self.fields["new_policy"]
        assert isinstance(choice, forms.ModelChoiceField)
        choice.queryset = candidates(project)
        choice.empty_label = f"None: {current} writes" if (current := project.current_policy) else "None"
        if self.kind == Protocol.Kind.RATING or not choice.queryset.exists():
            del self.fields["gate_prompts"]  # ratings make no pairs; one policy has no rival
            choice.help_text = "Writes the completions."
        if not choice.queryset.exists():
            del self.fields["new_policy"]
        rival = self.fields["against"]
        assert isinstance(rival, forms.ModelChoiceField)
        rival.queryset = choice.queryset
        rival.empty_label = f"The current policy, {current}" if current else "The current policy"
        if "gate_prompts" not in self.fields or choice.queryset.count() < 2:
            del self.fields["against"]

    @property
    def asked(self) -> Sequence[BoundField]:
        return [self[name] for name in ("question", *OF_KIND[self.kind]) if name not in self.allowances]

    @property
    def allowed(self) -> Sequence[BoundField]:
        return [self[name] for name in self.allowances]

    @property
    def planned(self) -> Sequence[BoundField]:
        return [self[name] for name in PLAN if name in self.fields]

    @property
    def folded(self) -> Sequence[BoundField]:
        return [self[name] for name in FOLDED]

    @property
    def folded_has_errors(self) -> bool:
        return any(name in self.errors for name in FOLDED)

    def clean_question(self) -> str:
        return " ".join(self.cleaned_data["question"].split())

    def clean_criteria(self) -> list[dict[str, str]]:
        lines = [line.strip() for line in self.cleaned_data["criteria"].splitlines() if line.strip()]
        if not 1 <= len(lines) <= MOST_CRITERIA:
            raise forms.ValidationError(f"Name from 1 to {MOST_CRITERIA} criteria.")
        found: dict[str, dict[str, str]] = {}
        for line in lines:
            name, _, help_text = (part.strip() for part in line.partition(":"))
            key = slugify(name)[:40] or f"criterion-{len(found) + 1}"
            if not name or len(name) > 80:
                raise forms.ValidationError(f"“{line[:40]}”: a criterion has a name of 1 to 80 characters.")
            if key in found:
                raise forms.ValidationError(f"“{name}” stands there twice.")
            found[key] = {"key": key, "name": name, "help": help_text}
        return list(found.values())

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        low, high = cleaned.get("low"), cleaned.get("high")
        if low is not None and high is not None and low >= high:
            self.add_error("high", "The highest score must be above the lowest.")
        counts = [cleaned.get(name) for name in ("train_prompts", "test_prompts", "gate_prompts")]
        if not self.errors and not any(counts):
            self.add_error("train_prompts", "A round needs at least one prompt.")
        if cleaned.get("against") and cleaned.get("against") == cleaned.get("new_policy"):
            self.add_error("against", "A policy is not compared with itself.")
        current = self.project.current_policy
        writer = cleaned.get("new_policy") or current
        if cleaned.get("source") == "sample" and (writer is None or not writer.location):
            self.add_error(
                "source", "The project has no policy with a model that could write. Set one first."
            )
        return cleaned

    @property
    def options(self) -> dict[str, Any]:
        """The protocol's options, as the models want them."""
        names = [name for name in OF_KIND[self.kind] if name != "completions_per_task"]
        return {name: self.cleaned_data[name] for name in names}

    @property
    def plan(self) -> RoundPlan:
        data = self.cleaned_data
        return RoundPlan(
            source=data["source"],
            train_prompts=data["train_prompts"],
            test_prompts=data["test_prompts"],
            gate_prompts=data.get("gate_prompts", 0) if data.get("new_policy") else 0,
            completions_per_task=data.get("completions_per_task", 2),
            overlap=data["overlap"],
            test_overlap=data["test_overlap"],
            temperature=data["temperature"],
            max_new_tokens=data["max_new_tokens"],
            seed=data["seed"],
        )


def candidates(project: Project) -> QuerySet[Policy]:
    """Policies that can be put against the current one, the newest first."""
    others = Policy.objects.filter(project=project)
    if project.current_policy_id is not None:
        others = others.exclude(pk=project.current_policy_id)
    return others.exclude(state=Policy.State.EXTERNAL).order_by("-pk")


def _defaults(project: Project, kind: Protocol.Kind) -> dict[str, Any]:
    """The last round of this kind again; for the first one, what suits the prompts that are there."""
    defaults = {**_first_plan(project), "question": DEFAULT_QUESTIONS[kind], **_first_options()}
    # Imports make rounds too, with a plan that nobody can choose.
    asked = project.rounds.filter(protocol__kind=kind, plan__source__in=("sample", "existing"))
    last = asked.order_by("-number").select_related("protocol").first()
    if last is not None:
        options = dict(last.protocol.options)
        if "criteria" in options:
            options["criteria"] = _as_text(options["criteria"])
        defaults |= {**last.plan, **options, "question": last.protocol.question}
    newest = candidates(project).filter(state=Policy.State.CANDIDATE).first()
    defaults["new_policy"] = newest
    return defaults


def _first_options() -> dict[str, Any]:
    return {
        "strengths": 4,
        "tie": True,
        "both_bad": True,
        "ties": True,
        "partial": True,
        "criteria": "Overall",
        "low": 1,
        "high": 5,
    }


def _first_plan(project: Project) -> dict[str, Any]:
    available = available_prompts(project)
    can_sample = project.current_policy is not None and project.current_policy.location
    held_out = min(40, available[Prompt.Split.TEST])
    return {
        "source": "sample" if can_sample else "existing",
        "train_prompts": min(200, available[Prompt.Split.TRAIN]),
        "test_prompts": held_out,
        "gate_prompts": held_out,
        "completions_per_task": 4,
        "overlap": 1,
        "test_overlap": 2,
        "temperature": 1.0,
        "max_new_tokens": 128,
        "seed": 0,
    }


def available_prompts(project: Project) -> dict[str, int]:
    of_project = Prompt.objects.filter(project=project)
    return {split: of_project.filter(split=split).count() for split in Prompt.Split.values}


def _as_text(criteria: list[dict[str, str]]) -> str:
    lines = (f"{one['name']}: {one['help']}" if one["help"] else one["name"] for one in criteria)
    return "\n".join(re.sub(r"\s+", " ", line) for line in lines)
