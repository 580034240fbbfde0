"""What a manager may choose for a run, and the reason for an override of the gate."""

import re
from typing import Any

from django import forms
from django.db.models import QuerySet

from labeling.models import Policy, PreferenceDataset, Project
from training.ingredients import datasets_to_learn_from, reward_models, trained_policies
from training.models import Artifact, Run
from training.recipes import default_settings, merged
from training.rlhf.config import ConfigError, RunConfig, Sampling, Training, Tuning, upgraded
from training.rlhf.method_settings import Dpo

KINDS = {"full": "All weights", "lora": "LoRA adapters"}  # of tuning
TUNING = ("kind", "lora_rank", "lora_alpha", "lora_dropout")
SAMPLING = ("temperature", "max_new_tokens")
# Settings of training.rlhf.config.Training, in the order of the page. The first group is always open.
FIRST = ("learning_rate", "epochs", "batch_size")
FOLDED = (
    "max_length", "gradient_accumulation", "max_steps", "warmup_ratio", "schedule", "weight_decay",
    "max_grad_norm", "log_every", "save_every", "bf16", "gradient_checkpointing",
)  # fmt: skip
# As a refusal names settings: "epochs is 0.0: above 0", "'training.max_steps': too large".
SETTING = re.compile(r"'?(?:(?:tuning|training|sampling|dpo)\.)?\b([a-z_]+)'?")
NAMED = re.compile(rf"{SETTING.pattern}(?: and {SETTING.pattern})?(?: is|:)")
OF_DPO = ("beta", "sft_weight", "use_margin")


def _number(label: str, help_text: str = "", *, whole: bool = False) -> forms.Field:
    kind = forms.IntegerField if whole else forms.FloatField
    return kind(
        label=label, help_text=help_text, widget=forms.NumberInput(attrs={"step": 1 if whole else "any"})
    )


class RewardModelChoice(forms.ModelChoiceField):
    def label_from_instance(self, obj: Any) -> str:
        return f"Run {obj.run_id}, on {obj.run.dataset}"


class RunForm(forms.Form):
    """One method's settings, filled in with defaults that work for the chosen policy."""

    dataset = forms.ModelChoiceField(queryset=PreferenceDataset.objects.none(), empty_label=None)
    policy = forms.ModelChoiceField(
        queryset=Policy.objects.none(), empty_label=None, label="Start from the policy"
    )
    reward_model = RewardModelChoice(
        queryset=Artifact.objects.none(),
        required=False,
        empty_label="None: no win rate by reward model",
        help_text="Scores the new policy against the old one on held-out prompts.",
    )
    learning_rate = _number("Learning rate", "How far each step goes.")
    epochs = _number("Epochs", "How often each row is seen.")
    batch_size = _number("Batch size", "Rows on the device at once.", whole=True)
    beta = _number(
        "Beta",
        "How strongly the policy is held to the one it starts from: 0.1 is usual, higher stays closer.",
    )
    kind = forms.ChoiceField(
        label="Tuning",
        choices=list(KINDS.items()),
        help_text="Adapters need far less memory.",
    )
    seed = forms.IntegerField(
        min_value=0, max_value=2**32 - 1, help_text="Where chance begins: the same one repeats a run."
    )
    max_length = _number(
        "Longest row", "Tokens of prompt and completion; longer rows are dropped.", whole=True
    )
    gradient_accumulation = _number("Gradient accumulation", "Batches for one step.", whole=True)
    max_steps = _number("Steps at most", "-1: as the epochs say.", whole=True)
    warmup_ratio = _number("Warm-up", "Share of the steps in which the learning rate rises.")
    schedule = forms.ChoiceField(
        choices=[(name, name) for name in ("constant", "linear", "cosine")],
        help_text="How the learning rate goes on after that.",
    )
    weight_decay = _number("Weight decay", "Pulls weights towards 0.")
    max_grad_norm = _number("Clip gradients at", "The longest step that a batch may ask for.")
    log_every = _number("Steps between reports", whole=True)
    save_every = _number("Steps between checkpoints", whole=True)
    sft_weight = _number(
        "Weight of an SFT term", "Also trains on the chosen completions as they are, to keep them likely."
    )
    lora_rank = _number("LoRA rank", "Size of the adapters.", whole=True)
    lora_alpha = _number("LoRA alpha", "How much they count, often twice the rank.", whole=True)
    lora_dropout = _number("LoRA dropout", "Share of their inputs left out at random.")
    temperature = _number("Temperature in evaluation", "1: as the policy is; lower is less varied.")
    max_new_tokens = _number("Longest completion in evaluation", "Tokens.", whole=True)
    use_margin = forms.BooleanField(
        required=False,
        label="Stronger preferences count more",
        help_text="A clear preference is to be told apart further than a slight one.",
    )
    bf16 = forms.TypedChoiceField(
        required=False,
        label="Compute in bf16",
        choices=[("", "Where a GPU can"), ("True", "Yes"), ("False", "No")],
        coerce=lambda value: value == "True",
        empty_value=None,
        help_text="Half the bytes for each number.",
    )
    gradient_checkpointing = forms.BooleanField(required=False, label="Save memory by computing twice")
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
        policies = trained_policies(project)
        policy = project.current_policy if project.current_policy in policies else policies.first()
        chosen: dict[str, Any] = kwargs.pop("initial", None) or {}
        policy = policies.filter(pk=chosen.get("policy", 0)).first() or policy
        if like is None or like.method != method:
            filled_in = {**_flat(default_settings(method=method, policy=policy)), "policy": policy}
        else:
            filled_in = settings_of(like)
        kwargs["initial"] = {**filled_in, **chosen}
        super().__init__(*args, **kwargs)
        self._choose_from("dataset", datasets_to_learn_from(project))
        self._choose_from("policy", policies)
        models = reward_models(project)
        self._choose_from("reward_model", models, models.filter(run__dataset=self.initial["dataset"]).first())
        if method != Run.Method.DPO:
            for name in ("reward_model", "then_next_round", *OF_DPO, *SAMPLING):
                del self.fields[name]

    def _choose_from(self, name: str, rows: QuerySet[Any], best: Any = None) -> None:
        """Offer these rows; chosen is the one that was asked for, else the best one, else the first."""
        field = self.fields[name]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = rows
        if name in self.initial and self.initial[name] is None:
            return  # an earlier run was content without one
        asked = getattr(self.initial.get(name), "pk", self.initial.get(name))
        self.initial[name] = rows.filter(pk=asked).first() or best or rows.first()

    def stranger(self) -> Artifact | None:
        """The reward model that the form proposes, if it did not learn from the dataset it proposes."""
        model, dataset = self.initial["reward_model"], self.initial["dataset"]
        if "reward_model" not in self.fields or model is None or model.run.dataset == dataset:
            return None
        return model

    def section(self, names: tuple[str, ...]) -> list[forms.BoundField]:
        return [self[name] for name in names if name in self.fields]

    def choices(self) -> list[forms.BoundField]:
        return self.section(("dataset", "policy", "reward_model"))

    def settings(self) -> list[forms.BoundField]:
        return self.section((*FIRST, "beta", "kind", "seed"))

    def folded(self) -> list[forms.BoundField]:
        return self.section((*FOLDED[:-1], "sft_weight", *TUNING[1:], *SAMPLING, "use_margin", FOLDED[-1]))

    def wrong(self) -> list[forms.BoundField]:
        """Fields that something is said beside, in the order of the page."""
        return [field for field in (*self.choices(), *self.settings(), *self.folded()) if field.errors]

    def folded_has_errors(self) -> bool:
        return any(field.errors for field in self.folded())

    def consent(self) -> list[forms.BoundField]:
        return self.section(("then_next_round", "start_when_ready"))

    def clean(self) -> dict[str, Any]:
        """Let the recipe itself refuse what cannot be run, and say it beside the form."""
        values = super().clean() or {}
        if not self.errors:
            try:
                self.config = self._config(values)
                RunConfig.from_json({**self.config, "method": self.method, "model": "to be filled in"})
            except ConfigError as error:
                self.refuse(str(error))
        return values

    def refuse(self, why: str) -> None:
        """Say it beside the settings that it begins with, and in the words of the page."""
        begins = NAMED.match(why)
        named = [name for name in (begins.groups() if begins else ()) if name in self.fields]
        said = SETTING.sub(lambda found: str(self[found[1]].label) if found[1] in named else found[0], why)
        for name in named or [None]:
            self.add_error(name, said)

    def _config(self, values: dict[str, Any]) -> dict[str, Any]:
        training = {name: values[name] for name in (*FIRST, *FOLDED) if values.get(name) is not None}
        config = {
            "seed": values["seed"],
            "tuning": {name: values[name] for name in TUNING},
            "training": training,
        }
        if self.method == Run.Method.DPO:
            config["sampling"] = {name: values[name] for name in SAMPLING}
            config["dpo"] = {name: values[name] for name in OF_DPO}
        return config


def _flat(defaults: dict[str, Any]) -> dict[str, Any]:
    """Defaults of a recipe, completed by those of RunConfig, under the names of the form's fields."""
    whole = merged(
        {
            "seed": 0,
            "tuning": vars(Tuning()),
            "training": vars(Training()),
            "sampling": vars(Sampling()),
            "dpo": vars(Dpo()),
        },
        upgraded(defaults),
    )
    return {"seed": whole["seed"], **whole["tuning"], **whole["training"], **whole["dpo"], **{
        name: whole["sampling"][name] for name in SAMPLING
    }}  # fmt: skip


def settings_of(run: Run) -> dict[str, Any]:
    """What the form was filled in with for a run; rows that its check found too long have room now."""
    values = {
        **_flat(run.config),
        **{name: getattr(run, name) for name in ("dataset", "policy", "reward_model", "then_next_round")},
    }
    values["max_length"] = max(values["max_length"], _longest_dropped(run))
    return values


def _longest_dropped(run: Run) -> int:
    """Tokens of the longest row that the run's check dropped; 0 when it dropped none."""
    rows = run.preflight.get("rows") or {}
    parts = [part for splits in rows.values() for part in splits.values()]
    return max((int(part["longest"]) for part in parts if part.get("dropped")), default=0)


class PromoteForm(forms.Form):
    reason = forms.CharField(
        label="Why this policy takes over",
        help_text="Kept with the policy for good.",
        min_length=10,
        max_length=2000,
        widget=forms.Textarea(attrs={"rows": 3}),
    )
