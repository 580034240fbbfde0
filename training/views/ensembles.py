"""Reward models that were made together, as each of their pages shows them."""

from dataclasses import dataclass
from typing import Any

from training.charts import Chart, Interval, interval_chart
from training.models import Run
from training.results import number_in

WORDS = {"agree": "they agree", "between": "in between", "disagree": "they disagree"}


@dataclass(frozen=True)
class Ensemble:
    first: int
    members: list[tuple[Run, float | None]]  # each with its accuracy on held-out comparisons
    disagreement: float | None  # in standard deviations of a model's scores
    together: float | None  # accuracy
    chart: Chart | None

    @property
    def is_whole(self) -> bool:
        return all(run.state == Run.State.COMPLETE for run, _ in self.members)


def ensemble_of(run: Run) -> Ensemble | None:
    """None for a run that was made alone. A query."""
    if run.ensemble_id is None:
        return None
    members = list(Run.objects.filter(ensemble=run.ensemble_id).order_by("pk"))
    first = next((one for one in members if one.pk == run.ensemble_id), None)
    found: dict[str, Any] = (first.evaluation.get("ensemble") or {}) if first else {}
    return Ensemble(
        first=run.ensemble_id,
        members=[(one, number_in(one.evaluation, "accuracy")) for one in members],
        disagreement=number_in(found, "disagreement"),
        together=number_in(found, "together", "rate"),
        chart=_by_doubt(found),
    )


def _by_doubt(found: dict[str, Any]) -> Chart | None:
    shares = {"all": found.get("together"), **(found.get("by_doubt") or {})}
    points = [
        Interval(
            label="all pairs" if name == "all" else WORDS.get(name, name),
            value=rate,
            low=number_in(share, "low") or 0.0,
            high=high if (high := number_in(share, "high")) is not None else 1.0,
            n=int(number_in(share, "n") or 0),
        )
        for name, share in shares.items()
        if (rate := number_in(share, "rate")) is not None
    ]
    if not points:
        return None
    return interval_chart(
        key="by-doubt",
        title="How often they are right together",
        x_label="held-out pairs, a third each",
        y_label="on the raters' side",
        points=points,
        counted="pairs",
        note="Pairs in thirds by how far the models disagree. Where doubt is of use, the last third is right "
        "less often.",
    )
