"""How far judges agree with people: what an audit found, and the audits that a project has."""

from dataclasses import dataclass
from typing import Any

from labeling.agreement import PairAgreement, Share
from labeling.models import Project
from training.charts import Chart, grouped_bars
from training.models import Run
from training.results import number_in
from training.views.evaluations import STRENGTHS, raters_agreement

SHOWN = 5  # audits on the page of a new run


@dataclass(frozen=True, kw_only=True)
class JudgeAudit:
    """Shares are None without a case; intervals are 95 % over prompts."""

    run: Run
    judge: str
    model: str
    rubric: str
    n: float | None
    agreement: float | None  # a tie, or a choice of a place, counting half
    low: float | None
    high: float | None
    decided: float | None  # of the comparisons where its choice survived the exchange
    decided_low: float | None
    decided_high: float | None
    kappa: float | None
    first_place: float | None  # share of its choices for the first place; 0.5 without a bias
    first_low: float | None
    first_high: float | None
    nonsense: float | None
    nonsense_low: float | None
    nonsense_high: float | None
    inconsistent: float | None
    people: float | None = None  # how often a rater is on the side of the others
    by_strength: Chart | None = None


def judge_audit(
    evaluation: dict[str, Any], run: Run, *, whole: bool = True, names: dict[str, str] | None = None
) -> JudgeAudit | None:
    """None for a run that asked no judge. `whole`: with the raters' own agreement, which reads labels.

    `names` of the project's policies by their folders; one query where they are not given.
    """
    found = evaluation.get("judge_audit")
    rewards = run.config.get("rewards") or []
    if not isinstance(found, dict) or not rewards:
        return None
    options = rewards[0].get("options") or {}
    location = str(rewards[0].get("location") or "")
    names = _names(run.project) if names is None else names
    raters = PairAgreement(overall=Share())
    if whole and run.dataset:
        raters = raters_agreement(run.dataset)
    return JudgeAudit(
        run=run,
        judge=names.get(location, location),
        model=str(options.get("model") or ""),
        rubric=str(options.get("rubric") or ""),
        n=number_in(found, "n"),
        agreement=number_in(found, "agreement", "rate"),
        low=number_in(found, "agreement", "low"),
        high=number_in(found, "agreement", "high"),
        decided=number_in(found, "decided", "rate"),
        decided_low=number_in(found, "decided", "low"),
        decided_high=number_in(found, "decided", "high"),
        kappa=number_in(found, "kappa"),
        first_place=number_in(found, "position", "rate"),
        first_low=number_in(found, "position", "low"),
        first_high=number_in(found, "position", "high"),
        nonsense=number_in(found, "nonsense", "rate"),
        nonsense_low=number_in(found, "nonsense", "low"),
        nonsense_high=number_in(found, "nonsense", "high"),
        inconsistent=number_in(found, "inconsistent", "rate"),
        people=raters.overall.rate,
        by_strength=_by_strength(found.get("by_strength"), raters) if whole else None,
    )


def audits_of(project: Project) -> list[JudgeAudit]:
    """The newest audits of a project's judges. Two queries."""
    runs = project.runs.filter(method=Run.Method.JUDGE_AUDIT, state=Run.State.COMPLETE).order_by("-pk")
    names = _names(project)
    found = (judge_audit(run.evaluation, run, whole=False, names=names) for run in runs[:SHOWN])
    return [audit for audit in found if audit is not None]


def _names(project: Project) -> dict[str, str]:
    """Policies by their folders. A judge is asked as a model: a prompted variant's prompt is not read."""
    policies = project.policies.exclude(location="").order_by("-pk")
    return {policy.location: policy.name for policy in policies if not policy.is_prompted}


def _by_strength(found: Any, raters: PairAgreement) -> Chart | None:
    if not isinstance(found, dict) or not found:
        return None
    strengths = sorted(int(key) for key in found if str(key).isdigit())
    ends = [(number_in(found, str(one), "low"), number_in(found, str(one), "high")) for one in strengths]
    people = [raters.by_strength.get(strength, Share()).rate for strength in strengths]
    series = [("judge", [number_in(found, str(strength), "rate") for strength in strengths])]
    if any(rate is not None for rate in people):
        series.append(("a rater, by the others", people))
    return grouped_bars(
        key="judge-by-strength",
        title="How often the judge is on people's side",
        x_label="how much better",
        y_label="same side",
        groups=[STRENGTHS.get(strength, "tie") for strength in strengths],
        series=series,
        intervals=[(low, high) if low is not None and high is not None else None for low, high in ends],
    )
