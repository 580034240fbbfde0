"""Several reward models as one reward, as fields: an ensemble, and helpfulness gated by safety."""

from typing import Any

from django import forms

from training.models import Artifact

COMBINE = [
    ("penalised", "Their mean, less where they disagree"),
    ("min", "The one that likes it least"),
    ("mean", "Their mean"),
]
ENSEMBLE = ("ensemble_models", "ensemble_combine", "ensemble_k", "ensemble_weight")
GATED = ("gated_helpfulness", "gated_safety", "gated_threshold", "gated_words", "gated_weight")


def combined_fields(named: list[tuple[str, str]]) -> dict[str, forms.Field]:
    """`named`: the reward models to choose from, value and label; none for fewer than two."""
    if len(named) < 2:
        return {}
    nobody = [("", "–"), *named]
    number = forms.NumberInput(attrs={"step": "any"})
    return {
        "ensemble_models": forms.MultipleChoiceField(
            required=False,
            label="Reward models",
            choices=named,
            widget=forms.CheckboxSelectMultiple,
            help_text="Two or more that differ by seed or by data.",
        ),
        "ensemble_combine": forms.ChoiceField(
            required=False, label="Together they give", choices=COMBINE, initial="penalised"
        ),
        "ensemble_k": forms.FloatField(
            required=False,
            label="Standard deviations taken off",
            initial=1.0,
            widget=number,
            help_text="Of the mean, where they disagree; 0 does not doubt.",
        ),
        "ensemble_weight": forms.FloatField(
            required=False, label="Weight of the ensemble", initial=1.0, widget=number
        ),
        "gated_helpfulness": forms.ChoiceField(
            required=False, label="Helpfulness is scored by", choices=nobody
        ),
        "gated_safety": forms.ChoiceField(required=False, label="Safety is scored by", choices=nobody),
        "gated_threshold": forms.FloatField(
            required=False,
            label="Unsafe below",
            initial=0.15,
            widget=number,
            help_text="Probability of being safe: below it, safety's score counts (Llama 2: 0.15).",
        ),
        "gated_words": forms.CharField(
            required=False,
            label="Prompts about safety hold one of",
            max_length=2000,
            help_text="Words with commas between them; there safety's score always counts.",
        ),
        "gated_weight": forms.FloatField(
            required=False, label="Weight of the two", initial=1.0, widget=number
        ),
    }


def ensemble_in(values: dict[str, Any], models: list[Artifact]) -> dict[str, Any] | None:
    """An entry of `rewards` without a weight; None where nobody chose one."""
    folders = _folders(models)
    chosen = values.get("ensemble_models") or []
    if not chosen:
        return None
    options: dict[str, Any] = {"models": [folders[value] for value in chosen]}
    options["combine"] = values.get("ensemble_combine") or "penalised"
    if values.get("ensemble_k") is not None:
        options["k"] = values["ensemble_k"]
    return {"name": "ensemble", "kind": "ensemble", "options": options}


def gated_in(values: dict[str, Any], models: list[Artifact]) -> dict[str, Any] | None:
    folders = _folders(models)
    chosen = [values.get(name) for name in ("gated_helpfulness", "gated_safety")]
    if not any(chosen):
        return None
    if not all(chosen):
        missing = "gated_safety" if chosen[0] else "gated_helpfulness"
        raise forms.ValidationError(
            {missing: "Choose a reward model here as well, or for neither of the two."}
        )
    helpfulness, safety = (folders.get(value or "", "") for value in chosen)
    options: dict[str, Any] = {"helpfulness": helpfulness, "safety": safety}
    if values.get("gated_threshold") is not None:
        options["threshold"] = values["gated_threshold"]
    if words := [word.strip() for word in (values.get("gated_words") or "").split(",") if word.strip()]:
        options["safety_words"] = words
    return {"name": "helpful and safe", "kind": "gated", "options": options}


def filled_in(reward: dict[str, Any], models: list[Artifact]) -> dict[str, Any]:
    """The fields as they were when this ensemble or pair was chosen."""
    values = {folder: value for value, folder in _folders(models).items()}
    options = reward["options"]
    if reward["kind"] == "ensemble":
        return {
            "ensemble_models": [values[one] for one in options["models"] if one in values],
            "ensemble_combine": options.get("combine", "penalised"),
            "ensemble_k": options.get("k", 1.0),
            "ensemble_weight": reward["weight"],
        }
    return {
        "gated_helpfulness": values.get(options["helpfulness"], ""),
        "gated_safety": values.get(options["safety"], ""),
        "gated_threshold": options.get("threshold", 0.15),
        "gated_words": ", ".join(options.get("safety_words", [])),
        "gated_weight": reward["weight"],
    }


def _folders(models: list[Artifact]) -> dict[str, str]:
    return {str(model.run_id): model.folder for model in models}
