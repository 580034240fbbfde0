"""The further datasets of a run: checked, named, and written down in its recipe and its rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.utils.text import slugify

from labeling.models import PreferenceDataset, Project
from training.ingredients import can_be_learnt_from
from training.models import Run, RunDataset
from training.recipe_checks import RunRefused
from training.rlhf.methods import METHODS
from training.rlhf.mixture_settings import MAIN

MOST = 20  # further datasets of a run


class Mixed(NamedTuple):
    """A further dataset, and its weight beside the main one's 1."""

    dataset: PreferenceDataset
    weight: float


def check_mixture(project: Project, method: str, main: PreferenceDataset, mixture: Sequence[Mixed]) -> None:
    """Raises RunRefused for a dataset that this run cannot learn from beside its main one."""
    if len(mixture) > MOST:
        raise RunRefused(f"A run learns from at most {MOST} further datasets.")
    seen = {main.pk}
    for dataset, _ in mixture:
        if dataset.project_id != project.pk:
            raise RunRefused(f"The dataset {dataset} belongs to another project.")
        if dataset.pk in seen:
            raise RunRefused(f"The dataset {dataset} is there already: name each of a mixture once.")
        seen.add(dataset.pk)
        if not can_be_learnt_from(dataset, method):
            needs = METHODS[method]
            raise RunRefused(
                f"The dataset {dataset} has nothing for {needs.label} to learn from: {needs.learns_from}"
            )


def recipe_of(mixture: Sequence[Mixed]) -> list[dict[str, Any]]:
    """`mixture` of a recipe."""
    names = _names([dataset for dataset, _ in mixture])
    return [
        {"name": name, "weight": weight, "source": dataset.source}
        for name, (dataset, weight) in zip(names, mixture, strict=True)
    ]


def add_rows(run: Run, mixture: Sequence[Mixed]) -> None:
    RunDataset.objects.bulk_create(
        RunDataset(run=run, dataset=dataset, name=part["name"], weight=weight)
        for part, (dataset, weight) in zip(run.config.get("mixture", []), mixture, strict=True)
    )


def _names(datasets: Sequence[PreferenceDataset]) -> list[str]:
    """As files may be called: a dataset's name where that can be, and nobody else's."""
    names: list[str] = []
    for dataset in datasets:
        name = slugify(dataset.name)[:60].strip("-_") or f"dataset-{dataset.pk}"
        names.append(f"{name}-{dataset.pk}" if name in (*names, MAIN) else name)
    return names
