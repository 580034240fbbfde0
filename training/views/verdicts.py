"""Who prefers a new policy to the one it came from: people, the held-out reward model, ensembles, judges.

Beside each other with their intervals: where people and a stand-in part, the stand-in is to be doubted.
"""

from dataclasses import dataclass
from typing import Any

from training.charts import Chart, Interval, interval_chart
from training.models import Artifact, GateDecision
from training.results import number_in

KINDS = {"judge": "judge", "ensemble": "ensemble", "gated": "helpful and safe", "model": "reward model"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What one of them said; `error`: why it said nothing."""

    name: str
    win_rate: float | None
    low: float | None
    high: float | None
    n: float | None
    length_controlled: float | None = None
    asked: float | None = None  # a judge: pairs that it was asked about, in both orders each
    nonsense: float | None = None  # a judge: share of pairs without an answer
    inconsistent: float | None = None  # pairs where it chose a place and not a text
    disagreement_new: float | None = None  # an ensemble: standard deviation over its models
    disagreement_old: float | None = None
    learnt_from: bool = False
    error: str = ""


@dataclass(frozen=True)
class Verdicts:
    rows: list[Compared]
    chart: Chart | None

    @property
    def has_judge(self) -> bool:
        return any(row.asked for row in self.rows)

    @property
    def doubts(self) -> list[Compared]:
        return [row for row in self.rows if row.disagreement_new is not None]


def verdicts(evaluation: dict[str, Any], artifact: Artifact | None) -> Verdicts | None:
    """None where nobody compared the policies. One query, of what people said at the gate."""
    rows = [*_people(artifact), *_reward_model(evaluation), *_others(evaluation)]
    if not rows:
        return None
    points = [
        Interval(
            label=row.name,
            value=row.win_rate,
            low=row.low if row.low is not None else 0.0,
            high=row.high if row.high is not None else 1.0,
            n=int(row.n or 0),
            good=row.low is not None and row.low > 0.5,
        )
        for row in rows
        if row.win_rate is not None
    ]
    if not points:
        return Verdicts(rows, None)
    chart = interval_chart(
        key="verdicts",
        title="Who prefers the new policy",
        x_label="asked",
        y_label="win rate",
        points=points,
        counted="judgements",
        note="With 95 % intervals over prompts. People decide at the gate; the others are guesses at them.",
    )
    return Verdicts(rows, chart)


def _people(artifact: Artifact | None) -> list[Compared]:
    if artifact is None or artifact.policy_id is None:
        return []
    decisions = GateDecision.objects.filter(policy=artifact.policy_id, win_rate__isnull=False)
    found = decisions.order_by("-pk").first()
    if found is None:
        return []
    return [Compared(name="people", win_rate=found.win_rate, low=found.low, high=found.high, n=found.labels)]


def _reward_model(evaluation: dict[str, Any]) -> list[Compared]:
    rate = number_in(evaluation, "win_rate_reward_model")
    if rate is None:
        return []
    return [
        Compared(
            name="reward model",
            win_rate=rate,
            low=number_in(evaluation, "win_rate_low"),
            high=number_in(evaluation, "win_rate_high"),
            n=number_in(evaluation, "prompts"),
            length_controlled=number_in(evaluation, "win_rate_length_controlled"),
        )
    ]


def _others(evaluation: dict[str, Any]) -> list[Compared]:
    listed = evaluation.get("evaluators")
    return [_other(one) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _other(found: dict[str, Any]) -> Compared:
    error = found.get("error")
    names = ("win_rate", "low", "high", "n", "length_controlled", "asked", "nonsense", "disagreement_new",
             "disagreement_old")  # fmt: skip
    return Compared(
        name=str(found.get("name") or KINDS.get(str(found.get("kind")), "somebody")),
        inconsistent=number_in(found, "counts", "inconsistent"),
        learnt_from=bool(found.get("learnt_from")),
        error=str(error.get("what") or "It failed.") if isinstance(error, dict) else "",
        **{name: number_in(found, name) for name in names},
    )
