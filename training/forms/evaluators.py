"""Who else compares a new policy with the old one, as fields: an ensemble and a judge (a recipe's
`evaluators`). The held-out reward model has a field of its own.
"""

from typing import Any

from django import forms

from training.models import Artifact

NAMES = ("eval_ensemble", "eval_judge_location", "eval_judge_model", "eval_judge_rubric")
FIELD_OF = {"judge": "eval_judge_location", "ensemble": "eval_ensemble"}  # by the evaluator's name


def evaluator_fields(named: list[tuple[str, str]], judges: list[tuple[str, str]]) -> dict[str, forms.Field]:
    """`named`: the reward models to choose from; `judges`: value and label, "" for none."""
    fields: dict[str, forms.Field] = {}
    if len(named) > 1:
        fields["eval_ensemble"] = forms.MultipleChoiceField(
            required=False,
            label="An ensemble of reward models",
            choices=named,
            widget=forms.CheckboxSelectMultiple,
            help_text="Two or more: how far they disagree is kept of each completion.",
        )
    return fields | {
        "eval_judge_location": forms.ChoiceField(required=False, label="A judge", choices=judges),
        "eval_judge_model": forms.CharField(
            required=False, max_length=200, label="Its model", help_text="Of a server: as it names the model."
        ),
        "eval_judge_rubric": forms.CharField(
            required=False,
            label="Its rubric",
            max_length=4000,
            widget=forms.Textarea(attrs={"rows": 3}),
            help_text="What makes a completion good. It is asked about each two in both orders.",
        ),
    }


def evaluators_in(values: dict[str, Any], models: list[Artifact]) -> list[dict[str, Any]]:
    """Entries of `evaluators`. Raises forms.ValidationError, by field, for half of a judge."""
    folders = {str(model.run_id): model.folder for model in models}
    found: list[dict[str, Any]] = []
    if chosen := values.get("eval_ensemble"):
        options = {"models": [folders[value] for value in chosen], "combine": "mean"}
        found.append({"name": "ensemble", "kind": "ensemble", "options": options})
    location = values.get("eval_judge_location")
    rubric = (values.get("eval_judge_rubric") or "").strip()
    model = (values.get("eval_judge_model") or "").strip()
    if rubric and not location:
        raise forms.ValidationError({"eval_judge_location": "Who is to judge by the rubric?"})
    if location and not rubric:
        raise forms.ValidationError({"eval_judge_rubric": "Write what makes a completion good."})
    if location:
        options = {"rubric": rubric} | ({"model": model} if model else {})
        found.append({"name": "judge", "kind": "judge", "location": location, "options": options})
    return found


def filled_in(evaluators: list[dict[str, Any]], models: list[Artifact]) -> dict[str, Any]:
    """The fields as they were when these were chosen."""
    runs = {model.folder: str(model.run_id) for model in models}
    values: dict[str, Any] = {}
    for one in evaluators:
        options = one["options"]
        if one["kind"] == "ensemble":
            values["eval_ensemble"] = [runs[folder] for folder in options["models"] if folder in runs]
        elif one["kind"] == "judge":
            values |= {"eval_judge_location": one["location"]}
            values |= {f"eval_judge_{name}": options.get(name, "") for name in ("rubric", "model")}
    return values
