"""Form fields for the settings of a recipe, read off the dataclasses of training.rlhf.config."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from django import forms

from training.forms.setting_words import CHOICES, OF_KINDS, words_of
from training.forms.weights import WeightsField
from training.rlhf.config import DRAWS_BY_VLLM, RunConfig
from training.rlhf.methods import METHODS

# Sections of a recipe, each a dataclass of settings.
SECTIONS: dict[str, Any] = {
    field.name: field.default_factory
    for field in dataclasses.fields(RunConfig)
    if dataclasses.is_dataclass(field.default_factory)
}
# Asked for at once, before the page is opened further, in this order.
FIRST = ("training.learning_rate", "training.epochs", "training.batch_size")
FIRST_ONLINE = ("training.learning_rate", "training.max_steps", "training.batch_size")
FIRST_OWN: dict[str, tuple[str, ...]] = {
    "dpo": ("dpo.beta",),
    "kto": ("kto.beta", "kto.good_from", "kto.bad_to"),
    "ppo": ("ppo.rollout_size", "ppo.kl_coefficient", "ppo.kl_target"),
    "rloo": ("rloo.completions_per_prompt", "rloo.beta"),
    "grpo": ("grpo.completions_per_prompt", "grpo.beta"),
    "rejection_sampling": ("rejection_sampling.completions_per_prompt",),
    "critique_revision": ("critique_revision.rounds", "critique_revision.prompts"),
    "ai_preferences": (
        "ai_preferences.judge",
        "ai_preferences.judge_model",
        "ai_preferences.principles",
        "ai_preferences.prompts",
    ),
    "distillation": ("distillation.teacher", "distillation.system_prompt", "distillation.on_policy"),
}
LONG_TEXTS = {"distillation.system_prompt"}


@dataclass(frozen=True)
class Setting:
    """A setting of a recipe and the name of its field in the form."""

    section: str
    name: str
    field: str

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"


def sections_of(method: str) -> tuple[str, ...]:
    """Sections that the method reads, in the order of the page. A reward model writes nothing."""
    own = METHODS[method].section
    if METHODS[method].makes == "figures":
        return (own,)  # it trains nothing
    if METHODS[method].makes == "dataset":
        return (own, "sampling")
    writes = METHODS[method].makes == "policy"
    drawing = "vllm" if method in DRAWS_BY_VLLM else ""
    return tuple(name for name in ("training", own, "tuning", "sampling" if writes else "", drawing) if name)


def settings_of(method: str) -> list[Setting]:
    """Every setting that the method reads; a name that is taken gets its section before it."""
    found: dict[str, Setting] = {}
    for section in ("training", "tuning", METHODS[method].section, "sampling", "vllm"):
        if section in sections_of(method):
            for item in dataclasses.fields(SECTIONS[section]):
                field = f"{section}_{item.name}" if item.name in found else item.name
                found[field] = Setting(section, item.name, field)
    return list(found.values())


def first_of(method: str) -> tuple[str, ...]:
    """Keys of the settings that are asked for at once."""
    if METHODS[method].makes == "figures":
        return tuple(setting.key for setting in settings_of(method))
    if METHODS[method].makes == "dataset":
        return (*FIRST_OWN[method], "sampling.temperature", "sampling.max_new_tokens")
    is_online = METHODS[method].is_online
    shared = FIRST_ONLINE if is_online else FIRST
    length = ("sampling.max_new_tokens",) if METHODS[method].draws else ()
    return (*shared, *FIRST_OWN.get(method, ()), *length, "tuning.kind")


def field_of(setting: Setting, *, draws: bool) -> forms.Field:
    """`draws`: the method writes while it learns, so that some settings mean more."""
    field = _field_of(setting, draws=draws)
    if setting.key in OF_KINDS:
        field.widget.attrs["data-kinds"] = " ".join(OF_KINDS[setting.key])
    return field


def _field_of(setting: Setting, *, draws: bool) -> forms.Field:
    label, help_text = words_of(setting.section, setting.name, draws=draws)
    kind = get_type_hints(SECTIONS[setting.section])[setting.name]
    said: dict[str, Any] = {"label": label, "help_text": help_text}
    if get_origin(kind) is dict:
        return WeightsField(required=False, max_length=2000, **said)
    if get_origin(kind) is Literal:
        words = CHOICES.get(setting.key, {})
        return forms.ChoiceField(choices=[(v, words.get(v, v)) for v in get_args(kind)], **said)
    if kind is bool and _default(setting) is not None:
        return forms.BooleanField(required=False, **said)
    if kind is int:
        return forms.IntegerField(widget=forms.NumberInput(attrs={"step": 1}), **said)
    if kind is float:
        return forms.FloatField(widget=forms.NumberInput(attrs={"step": "any"}), **said)
    if setting.key in LONG_TEXTS:
        return forms.CharField(required=False, max_length=20_000, widget=forms.Textarea({"rows": 3}), **said)
    if kind is str:
        return forms.CharField(required=False, max_length=1000, **said)
    return forms.TypedChoiceField(  # left open: decided by the device
        required=False,
        choices=[("", "Where a GPU can"), ("True", "Yes"), ("False", "No")],
        coerce=lambda value: value == "True",
        empty_value=None,
        **said,
    )


def recipe_of(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """Cleaned fields as sections of a recipe; what was left open is left out."""
    recipe: dict[str, Any] = {section: {} for section in sections_of(method)}
    for setting in settings_of(method):
        if values.get(setting.field) is not None:
            recipe[setting.section][setting.name] = values[setting.field]
    return recipe


def flat(method: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe, completed by the defaults of RunConfig, under the names of the form's fields."""
    values = {}
    for setting in settings_of(method):
        values[setting.field] = recipe.get(setting.section, {}).get(setting.name, _default(setting))
    return values


def _default(setting: Setting) -> Any:
    return getattr(SECTIONS[setting.section](), setting.name)
