"""What a manager may choose for a run, filled in with settings that work."""

import re
from typing import Any

from django import forms
from django.db.models import QuerySet

from labeling.models import Policy, PreferenceDataset, Project
from training.forms import combined, evaluators, mixture, rewards, setting_fields, teachers
from training.ingredients import datasets_to_learn_from, reward_models, trained_policies
from training.models import Artifact, Run
from training.prompted import parts_in_training
from training.recipes import default_settings, rate_for
from training.rlhf.config import ConfigError, RunConfig, upgraded
from training.rlhf.methods import METHODS
from training.rlhf.reward_options import MOST_MODELS
from training.rlhf.tuning_settings import KINDS

# As a refusal names settings, one or two: "ppo.epochs is 0: from 1 to 64", "'training.max_steps': at most 9".
SETTING = re.compile(r"'?\b(?:[a-z_]+\.)?[a-z_]+'?")
NAMED = re.compile(r"'?([a-z_]+(?:\.[a-z_]+)?)'?(?: and '?([a-z_]+(?:\.[a-z_]+)?)'?)?(?: is|:)")
SHORT = KINDS | {"full": "all weights", "head": "the head alone", "freeze": "frozen first layers"}
GROUPS = {
    "training": "Optimisation",
    "tuning": "What is trained",
    "sampling": "Completions",
    "vllm": "Drawing by vLLM",
}


class RewardModelChoice(forms.ModelChoiceField):
    def label_from_instance(self, obj: Any) -> str:
        return f"Run {obj.run_id}, on {obj.run.dataset}"


class DatasetChoice(forms.ModelChoiceField):
    def label_from_instance(self, obj: Any) -> str:
        return f"{obj} (AI)" if obj.source == PreferenceDataset.Source.AI else str(obj)


class RunForm(forms.Form):
    """One method's settings, with defaults that work for the chosen policy."""

    dataset = DatasetChoice(queryset=PreferenceDataset.objects.none(), empty_label=None)
    policy = forms.ModelChoiceField(
        queryset=Policy.objects.none(), empty_label=None, label="Start from the policy"
    )
    reward_model = RewardModelChoice(
        queryset=Artifact.objects.none(),
        required=False,
        empty_label="None: no win rate by reward model",
        label="Evaluate with the reward model",
        help_text="Scores the new policy against the old one on held-out prompts.",
    )
    seed = forms.IntegerField(
        min_value=0, max_value=2**32 - 1, help_text="Where chance begins: the same one repeats a run."
    )
    then_next_round = forms.BooleanField(
        required=False, initial=True, label="Bring the new policy back to the raters in a round of its own"
    )
    start_when_ready = forms.BooleanField(
        required=False, label="Start by itself when the check finds nothing wrong"
    )

    def __init__(
        self, *args: Any, project: Project, method: str, like: Run | None = None, **kwargs: Any
    ) -> None:
        self.method = method
        self.learns = METHODS[method]
        self.settings_read = setting_fields.settings_of(method)
        policies = self.policies = trained_policies(project)
        policy = project.current_policy if project.current_policy in policies else policies.first()
        chosen: dict[str, Any] = kwargs.pop("initial", None) or {}
        policy = policies.filter(pk=chosen.get("policy", 0)).first() or policy
        writes = self.learns.makes == "policy"
        self.models = rewards.offered(project) if writes else []
        if like is None or like.method != method:
            defaults = default_settings(method=method, policy=policy)
            filled_in = {"seed": 0, **setting_fields.flat(method, upgraded(defaults)), "policy": policy}
            filled_in["learning_rate"] = None  # left to what is usual for the kind of tuning
        else:
            filled_in = settings_of(like) | rewards.filled_in(like.config.get("rewards") or [], self.models)
            filled_in |= mixture.filled_in(like)
            filled_in |= evaluators.filled_in(like.config.get("evaluators") or [], self.models)
            if self.learns.needs_teacher:
                filled_in["teacher"] = teachers.chosen_in(upgraded(like.config), policies)
        kwargs["initial"] = {**filled_in, **chosen}
        self.mixable = mixture.offered(project, method, like if like and like.method == method else None)
        super().__init__(*args, **kwargs)
        for setting in self.settings_read:
            self.fields[setting.field] = setting_fields.field_of(setting, draws=self.learns.draws)
        self._leave_rate_open(policy)
        if self.learns.needs_teacher:
            self.fields["teacher"] = teachers.teacher_field(self.fields["teacher"], policies)
        self._choose_from("dataset", datasets_to_learn_from(project, method))
        self._choose_from("policy", policies)
        models = reward_models(project)
        best = models.filter(run__dataset=self.initial["dataset"]).first()
        self._choose_from("reward_model", models, best)
        offered = rewards.reward_fields(project, self.models) if self.learns.is_online else {}
        if self.learns.makes == "figures":
            offered = rewards.judge_fields(project)
            self.policy = self.initial["policy"]
            del self.fields["policy"]
        if method == Run.Method.REWARD_MODEL:
            self.fields["ensemble_size"] = forms.IntegerField(
                min_value=1,
                max_value=MOST_MODELS,
                initial=1,
                label="How many of them",
                help_text="More than one: they differ by seed and order of the data alone, and how far "
                "they disagree is measured.",
            )
        self.fields |= offered
        self.reward_names = tuple(offered)
        self.fields |= mixture.mixture_fields(self.mixable)
        if writes:
            self.fields |= evaluators.evaluator_fields(rewards.named(self.models), rewards.judges(project))
        if offered and self.models and not any(self.initial.get(name) for name in offered):
            proposed = best if best in self.models else self.models[0]
            self.initial[f"reward_{proposed.run_id}"] = True
        if not writes:
            for name in ("reward_model", "then_next_round"):
                del self.fields[name]

    def _leave_rate_open(self, policy: Policy | None) -> None:
        """An empty learning rate is the usual one for whatever kind of tuning is posted."""
        if "learning_rate" not in self.fields:
            return  # nothing is trained
        field, kind = self.fields["learning_rate"], str(self.initial.get("kind") or "full")
        if self.is_bound:
            kind = str(self.data.get("kind") or kind)
        usual = rate_for(method=self.method, policy=policy, kind=kind if kind in KINDS else "full")
        field.required = False
        field.widget.attrs["placeholder"] = "usual"
        field.help_text = usual_in_words(usual, kind)

    def _choose_from(self, name: str, rows: QuerySet[Any], best: Any = None) -> None:
        """Offer these rows; chosen is the one that was asked for, else the best one, else the first."""
        field = self.fields[name]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = rows
        if name in self.initial and self.initial[name] is None:
            return  # an earlier run was content without one
        asked = getattr(self.initial.get(name), "pk", self.initial.get(name))
        self.initial[name] = rows.filter(pk=asked).first() or best or rows.first()

    # ---- what the page shows

    def stranger(self) -> Artifact | None:
        """The reward model that the form proposes, if it did not learn from the dataset it proposes."""
        model, dataset = self.initial["reward_model"], self.initial["dataset"]
        if "reward_model" not in self.fields or model is None or model.run.dataset == dataset:
            return None
        return model

    def _bound(self, *names: str) -> list[forms.BoundField]:
        return [self[name] for name in names if name in self.fields]

    def choices(self) -> list[forms.BoundField]:
        return self._bound("dataset", "policy", "reward_model")

    def settings(self) -> list[forms.BoundField]:
        first = setting_fields.first_of(self.method)
        found = {s.key: s.field for s in self.settings_read}
        return self._bound(*(found[key] for key in first), "seed", "ensemble_size")

    def folded_groups(self) -> list[tuple[str, list[forms.BoundField]]]:
        """The rest, section by section, the method's own first."""
        own = self.learns.section
        sections = [own, *(name for name in setting_fields.sections_of(self.method) if name != own)]
        first = setting_fields.first_of(self.method)
        rest = [s for s in self.settings_read if s.key not in first]
        titles = GROUPS | {own: self.learns.label}
        groups = [
            (titles[name], [self[s.field] for s in rest if s.section == name]) for name in sections if name
        ]
        return [(title, fields) for title, fields in groups if fields]

    def folded(self) -> list[forms.BoundField]:
        return [field for _, fields in self.folded_groups() for field in fields]

    def reward_models(self) -> list[tuple[forms.BoundField, forms.BoundField]]:
        """A box to tick and a weight for each reward model."""
        return [(self[f"reward_{m.run_id}"], self[f"reward_{m.run_id}_weight"]) for m in self.models]

    def mixture(self) -> list[tuple[forms.BoundField, forms.BoundField, PreferenceDataset]]:
        """A box to tick and a weight for each dataset."""
        return [(self[f"mix_{one.pk}"], self[f"mix_{one.pk}_weight"], one) for one in self.mixable]

    def mixture_open(self) -> bool:
        return any(box.value() or box.errors or weight.errors for box, weight, _ in self.mixture())

    def mixture_help(self) -> str:
        return mixture.help_of(self.method)

    def rules(self) -> list[list[tuple[str, forms.BoundField]]]:
        """Rows of fields, each with a short name."""
        parts = {"kind": "Rule", "text": "Looks for", "weight": "Weight", "name": "Name"}
        return [
            [(short, self[f"rule_{row}_{part}"]) for part, short in parts.items()]
            for row in range(1, rewards.RULES + 1)
        ]

    def rules_open(self) -> bool:
        return any(field.errors or field.value() for row in self.rules() for _, field in row[:2])

    def judge(self) -> list[forms.BoundField]:
        return self._bound("judge_location", "judge_model", "judge_rubric", "judge_weight")

    def may_ask_a_judge(self) -> bool:
        return any(name in self.fields for name in ("judge_location", "eval_judge_location"))

    def judge_open(self) -> bool:
        return any(field.errors or field.value() for field in self.judge()[:3])

    def ensemble(self) -> list[forms.BoundField]:
        return self._bound(*combined.ENSEMBLE)

    def ensemble_open(self) -> bool:
        return any(field.errors or field.value() for field in self.ensemble()[:1])

    def gated(self) -> list[forms.BoundField]:
        return self._bound(*combined.GATED)

    def gated_open(self) -> bool:
        return any(field.errors or field.value() for field in self.gated()[:2])

    def evaluators(self) -> list[forms.BoundField]:
        return self._bound(*evaluators.NAMES)

    def evaluators_open(self) -> bool:
        return any(field.errors or field.value() for field in self.evaluators())

    def functions(self) -> list[forms.BoundField]:
        return self._bound("python_function", "python_weight")

    def functions_open(self) -> bool:
        return any(field.errors or field.value() for field in self.functions()[:1])

    def wrong(self) -> list[forms.BoundField]:
        """Fields that something is said beside, in the order of the page."""
        mixed = [field for box, weight, _ in self.mixture() for field in (box, weight)]
        named = (
            *self.choices(),
            *mixed,
            *self.evaluators(),
            *self._bound(*self.reward_names),
            *self.settings(),
            *self.folded(),
        )
        return [field for field in named if field.errors]

    def folded_has_errors(self) -> bool:
        return any(field.errors for field in self.folded())

    def consent(self) -> list[forms.BoundField]:
        return self._bound("then_next_round", "start_when_ready")

    # ---- what was chosen

    def clean(self) -> dict[str, Any]:
        """Let the recipe itself refuse what cannot be run, and say it beside the form."""
        values = super().clean() or {}
        self.found = rewards.Found()
        self.mixed = mixture.chosen(values, self.mixable)
        for one in self.mixed:
            if one.dataset == values.get("dataset"):
                self.add_error(f"mix_{one.dataset.pk}", "This is the dataset that the run is on already.")
        if self.errors:
            return values
        try:
            if self.learns.is_online:
                self.found = rewards.rewards_in(values, self.models)
            elif self.learns.makes == "figures":
                self.found = rewards.judge_in(values)
                values["policy"] = self.policy
            self.compared_by = evaluators.evaluators_in(values, self.models)
            self.config = self._config(values)
            RunConfig.from_json({**self.config, "method": self.method, "model": "to be filled in"})
        except forms.ValidationError as error:
            self.add_error(None, error)
        except rewards.RewardError as error:
            self.add_error(error.field, str(error))
        except ConfigError as error:
            self.refuse(str(error))
        return values

    def _config(self, values: dict[str, Any]) -> dict[str, Any]:
        recipe = {"seed": values["seed"], **setting_fields.recipe_of(self.method, values)}
        if self.learns.needs_teacher:
            recipe = teachers.in_recipe(recipe, self.policies)
        if parts := parts_in_training(self.method, values["policy"], recipe):
            recipe["prompt_parts"] = parts
        if self.compared_by:
            recipe["evaluators"] = self.compared_by
        return {**recipe, "rewards": self.found.rewards} if self.found.rewards else recipe

    def refuse(self, why: str) -> None:
        """Say it beside the settings that it begins with, and in the words of the page."""
        if beside := self._reward_named(why):
            self.add_error(beside, why.removeprefix("rewards.").removeprefix("evaluators."))
            return
        begins = NAMED.match(why)
        settings = [setting for setting in (begins.groups() if begins else ()) if setting]
        named = [name for setting in settings if (name := self._field_of(setting))]

        def spoken(found: re.Match[str]) -> str:
            name = self._field_of(found[0].strip("'"))
            is_meant = name in named or (name and "_" in name)
            return str(self[name].label) if is_meant else found[0]

        said = SETTING.sub(spoken, why)
        for name in named:
            for value, words in getattr(self.fields[name], "choices", ()):
                said = said.replace(repr(value), f"“{words}”")
        places: list[str | None] = [*named] or [None]
        for place in places:
            self.add_error(place, said)

    def _field_of(self, setting: str) -> str:
        """The form's field for `ppo.epochs`, or for a bare `epochs`: then the section read first counts."""
        section, _, name = setting.rpartition(".")
        named = [s.field for s in self.settings_read if s.name == name and section in ("", s.section)]
        return named[0] if named else setting if setting in self.fields else ""

    def _reward_named(self, why: str) -> str:
        """The field of the reward that a refusal begins with; empty when it is about something else."""
        if why.startswith("evaluators."):
            return next((field for name, field in evaluators.FIELD_OF.items() if f".{name}" in why), "")
        if not why.startswith("rewards"):
            return ""
        for name in sorted(self.found.fields, key=len, reverse=True):  # "length 2" before "length"
            if why.startswith(f"rewards.{name}"):
                content, weight = self.found.fields[name]
                return weight if why.startswith(f"rewards.{name}.weight") else content
        return next((content for content, _ in self.found.fields.values()), rewards.first_field(self.models))


def usual_in_words(rate: float, kind: str) -> str:
    """
    >>> usual_in_words(1e-4, "lora")
    'Empty: 0.0001, as is usual for this method, size and LoRA.'
    """
    return f"Empty: {rate:g}, as is usual for this method, size and {SHORT.get(kind, kind)}."


def settings_of(run: Run) -> dict[str, Any]:
    """What the form was filled in with for a run; rows that its check found too long have room now."""
    recipe = upgraded(run.config)
    values = {
        "seed": recipe["seed"],
        **setting_fields.flat(run.method, recipe),
        **{name: getattr(run, name) for name in ("dataset", "policy", "reward_model", "then_next_round")},
    }
    if "max_length" in values:
        values["max_length"] = max(values["max_length"], _longest_dropped(run))
    return values


def _longest_dropped(run: Run) -> int:
    """Tokens of the longest row that the run's check dropped; 0 when it dropped none."""
    rows = run.preflight.get("rows") or {}
    parts = [part for splits in rows.values() for part in splits.values()]
    return max((int(part["longest"]) for part in parts if part.get("dropped")), default=0)
