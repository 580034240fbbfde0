"""Further datasets of a run in the form: a box to tick and a weight for each."""

from typing import Any

from django import forms

from labeling.models import PreferenceDataset, Project
from training.ingredients import datasets_to_learn_from
from training.mixtures import Mixed
from training.models import Run
from training.rlhf.mixture_settings import MOST_WEIGHT, WEIGHTED

OFFERED = 20  # the newest ones


def offered(project: Project, method: str, like: Run | None) -> list[PreferenceDataset]:
    """Datasets to choose from, the newest first; those of the run that the form follows are among them."""
    datasets = list(datasets_to_learn_from(project, method)[: OFFERED + 1])
    kept = [mixed.dataset for mixed in like.mixture.select_related("dataset")] if like else []
    found = {dataset.pk: dataset for dataset in [*datasets, *kept]}
    return list(found.values()) if len(found) > 1 else []


def mixture_fields(datasets: list[PreferenceDataset]) -> dict[str, forms.Field]:
    found: dict[str, forms.Field] = {}
    for dataset in datasets:
        found[f"mix_{dataset.pk}"] = forms.BooleanField(required=False, label=str(dataset))
        found[f"mix_{dataset.pk}_weight"] = forms.FloatField(
            required=False,
            min_value=0,
            max_value=MOST_WEIGHT,
            initial=1,
            label=f"Weight of {dataset}",
            widget=forms.NumberInput(attrs={"step": "any"}),
        )
    return found


def filled_in(run: Run) -> dict[str, Any]:
    """What the form was filled in with for a run."""
    values: dict[str, Any] = {}
    for mixed in run.mixture.all():
        values[f"mix_{mixed.dataset_id}"] = True
        values[f"mix_{mixed.dataset_id}_weight"] = mixed.weight
    return values


def chosen(values: dict[str, Any], datasets: list[PreferenceDataset]) -> list[Mixed]:
    """Those that were ticked, each with its weight; 1 where none was given."""
    found = []
    for dataset in datasets:
        if values.get(f"mix_{dataset.pk}"):
            weight = values.get(f"mix_{dataset.pk}_weight")
            found.append(Mixed(dataset, 1.0 if weight is None else weight))
    return found


def help_of(method: str) -> str:
    """What a weight does."""
    if method in WEIGHTED:
        return "A weight multiplies how much each row of that dataset counts; the dataset above counts 1."
    return (
        "A weight is how often rows are taken in an epoch: 0.5 takes half of them, 2 each one twice; "
        "the dataset above is taken once."
    )
