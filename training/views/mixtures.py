"""A run on several datasets as its page shows it: what each was, and how well it did on each."""

from dataclasses import dataclass
from typing import Any

from labeling.models import PreferenceDataset
from training import charts
from training.models import Run
from training.results import number_in
from training.rlhf.mixture_settings import MAIN

# Figures of measures.mixture_evaluation, what they are called on the page, and whether they are shares.
TITLES = {
    "accuracy": ("Accuracy", True),
    "loss": ("Loss", False),
    "loss_before": ("Loss before", False),
    "perplexity": ("Perplexity", False),
    "margin": ("Reward margin", False),
    "win_rate": ("Win rate by reward model", True),
    "eos_rate": ("Ends by itself", True),
    "length": ("Length, tokens", False),
}


def names(run: Run) -> dict[str, str]:
    """The run's further datasets, by what they are called in its folder. A query once they were checked."""
    if not any("/" in table for table in run.preflight.get("rows") or {}):
        return {}
    return {mixed.name: str(mixed.dataset) for mixed in run.mixture.select_related("dataset")}


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    name: str
    dataset: PreferenceDataset | None
    weight: str
    source: str  # in words; empty for people
    train: int
    test: int
    figures: list[tuple[str, str]]  # what they are called, and how they are written


@dataclass(frozen=True, kw_only=True)
class DatasetEvaluation:
    titles: list[str]
    rows: list[DatasetRow]


def dataset_evaluation(run: Run) -> DatasetEvaluation | None:
    """None for a run on one dataset, and before its evaluation."""
    found = [one for one in run.evaluation.get("datasets") or [] if isinstance(one, dict)]
    if not found:
        return None
    known = {mixed.name: mixed.dataset for mixed in run.mixture.select_related("dataset")}
    if run.dataset is not None:
        known[MAIN] = run.dataset
    shown = [name for name in TITLES if any(number_in(one, "figures", name) is not None for one in found)]
    return DatasetEvaluation(
        titles=[TITLES[name][0] for name in shown], rows=[_row(one, known, shown) for one in found]
    )


def _row(one: dict[str, Any], known: dict[str, PreferenceDataset], shown: list[str]) -> DatasetRow:
    name = str(one.get("name"))
    dataset = known.get(name)
    return DatasetRow(
        name=name,
        dataset=dataset,
        weight=charts.number(number_in(one, "weight") or 0.0),
        source=_source_in_words(dataset),
        train=int(number_in(one, "train") or 0),
        test=int(number_in(one, "test") or 0),
        figures=[(TITLES[name][0], _shown(one, name)) for name in shown],
    )


def _shown(one: dict[str, Any], name: str) -> str:
    value = number_in(one, "figures", name)
    if value is None:
        return "–"
    if not TITLES[name][1]:
        return charts.number(value)
    low, high = (number_in(one, "figures", end) for end in ("low", "high"))
    if low is None or high is None or name == "eos_rate":
        return charts.percent(value)
    return f"{charts.percent(value)} ({charts.percent(low)} to {charts.percent(high)})"


def _source_in_words(dataset: PreferenceDataset | None) -> str:
    if dataset is None or dataset.source == PreferenceDataset.Source.HUMAN:
        return ""
    return str(dataset.get_source_display())
