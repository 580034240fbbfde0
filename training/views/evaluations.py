"""What a run's evaluation.json and preflight.json say, in the shape that pages show.

Both are written by the child process, maybe by an older version: what is missing is not shown.
"""

from dataclasses import dataclass, fields
from typing import Any, cast

from django.core.cache import cache

from labeling.agreement import PairAgreement, Share, rater_accuracy
from labeling.comparisons import Rule
from labeling.datasets import held_out_judgements
from labeling.models import PreferenceDataset
from training.charts import Bin, Chart, calibration_chart, grouped_bars
from training.models import Run
from training.results import number_in

STRENGTHS = {1: "slightly", 2: "somewhat", 3: "clearly", 4: "far"}  # better; as raters read them


@dataclass(frozen=True, kw_only=True)
class PolicyFigures:
    """How the new policy differs from the old one on the held-out prompts; None is what was not measured."""

    prompts: float | None
    win_rate: float | None  # by the reward model
    win_rate_low: float | None
    win_rate_high: float | None
    reward_new: float | None
    reward_old: float | None
    prompts_dropped: float | None  # held-out prompts that left no room for a completion
    kl: float | None  # nats for a completion
    kl_standard_error: float | None
    length_new: float | None  # tokens
    length_old: float | None
    eos_rate_new: float | None  # share of completions that end by themselves
    eos_rate_old: float | None
    length_reward_correlation: float | None
    win_rate_length_controlled: float | None
    distinct_2_new: float | None  # distinct pairs of tokens over all of them
    distinct_2_old: float | None
    fixed_text_nats_new: float | None  # for a token of a text that no run learns from
    fixed_text_nats_old: float | None
    held_out_nats_new: float | None  # for a token of what a run that imitates would have imitated
    held_out_nats_old: float | None
    kl_note: str = ""  # why there is no KL

    @property
    def reward_gained(self) -> float | None:
        if self.reward_new is None or self.reward_old is None:
            return None
        return self.reward_new - self.reward_old


def policy_figures(evaluation: dict[str, Any]) -> PolicyFigures | None:
    """Figures of a run that makes a policy; None before its evaluation."""
    keys = {field.name: field.name for field in fields(PolicyFigures) if field.name != "kl_note"}
    keys["win_rate"] = "win_rate_reward_model"
    found = {name: number_in(evaluation, key) for name, key in keys.items()}
    if all(found[name] is None for name in ("kl", "win_rate", "length_new")):
        return None
    return PolicyFigures(**found, kl_note=str(evaluation.get("kl_note") or ""))


def evaluation_error(evaluation: dict[str, Any]) -> dict[str, str] | None:
    """What, where and do of an evaluation that failed after its model was saved."""
    error = evaluation.get("error")
    if not isinstance(error, dict):
        return None
    return {name: str(error.get(name) or "") for name in ("what", "where", "do")}


@dataclass(frozen=True, kw_only=True)
class RewardEvaluation:
    accuracy: float | None
    agreement: float | None  # how often a rater is on the side of the others, on the same tasks
    pairs: float | None
    low: float | None
    high: float | None
    length_baseline: float | None  # "the longer one is better", or the shorter: what a model must beat
    length_rule: str
    length_low: float | None
    length_high: float | None
    ece: float | None
    by_strength: Chart | None
    calibration: Chart | None
    calibration_note: str


def reward_evaluation(run: Run) -> RewardEvaluation | None:
    """A reward model on the held-out comparisons, beside the raters themselves; None for other runs."""
    found = run.evaluation
    accuracy = number_in(found, "accuracy")
    if run.makes != "reward_model" or accuracy is None:
        return None
    raters = raters_agreement(run.dataset) if run.dataset else PairAgreement(overall=Share())
    return RewardEvaluation(
        accuracy=accuracy,
        agreement=raters.overall.rate,
        pairs=number_in(found, "pairs"),
        low=number_in(found, "low"),
        high=number_in(found, "high"),
        **_length_baseline(found),
        ece=number_in(found, "ece"),
        by_strength=_by_strength(found.get("by_strength"), raters),
        calibration=_calibration(found.get("calibration")),
        calibration_note=str(found.get("calibration_note") or ""),
    )


def _length_baseline(found: dict[str, Any]) -> dict[str, Any]:
    """The rule that fits the rows that were learnt from; of an older evaluation, that the longer one wins."""
    rule = found.get("length_baseline")
    said = str(rule.get("rule") or "") if isinstance(rule, dict) else ""
    if not said:
        alone = number_in(found, "length_baseline_accuracy")
        return {"length_baseline": alone, "length_rule": "", "length_low": None, "length_high": None}
    return {
        "length_baseline": number_in(rule, "accuracy"),
        "length_rule": said,
        "length_low": number_in(rule, "low"),
        "length_high": number_in(rule, "high"),
    }


@dataclass(frozen=True, kw_only=True)
class Acceptable:
    """How well it tells acceptable completions from others, on held-out ratings."""

    n: float | None
    accuracy: float | None
    low: float | None
    high: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    actual: float | None  # completions that people found acceptable
    threshold: float | None  # by this rating or a higher one


@dataclass(frozen=True, kw_only=True)
class RatingEvaluation:
    """A reward model on held-out ratings; distances are on the scale of the ratings."""

    n: float | None
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    length_spearman: float | None  # what "the longer the better" would get
    mae: float | None  # how far off it is
    mae_of_median: float | None  # if it said the same of all
    mae_of_raters: float | None
    acceptable: Acceptable | None = None


def rating_evaluation(evaluation: dict[str, Any]) -> RatingEvaluation | None:
    names = [field.name for field in fields(RatingEvaluation) if field.name != "acceptable"]
    found = {name: number_in(evaluation, "ratings", name) for name in names}
    if not found["n"]:
        return None
    return RatingEvaluation(**found, acceptable=_acceptable(evaluation["ratings"].get("acceptable")))


def _acceptable(found: Any) -> Acceptable | None:
    names = [field.name for field in fields(Acceptable) if field.name != "threshold"]
    values = {name: number_in(found, name) for name in names}
    return Acceptable(**values, threshold=number_in(found, "from")) if values["n"] else None


@dataclass(frozen=True, kw_only=True)
class CriterionFigures:
    """How a reward model's own head for a criterion does on held-out ratings by it."""

    name: str
    share: float | None  # its weight in the reward
    n: float | None
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    order: float | None  # of two completions of a prompt, how often the better rated one scores higher
    f1: float | None  # of "acceptable"


def criteria_figures(evaluation: dict[str, Any]) -> list[CriterionFigures]:
    """None for a reward model with one score."""
    found = evaluation.get("criteria")
    if not isinstance(found, dict):
        return []
    names = ("share", "n", "spearman", "spearman_low", "spearman_high")
    return [
        CriterionFigures(
            name=str(name),
            order=number_in(one, "order", "accuracy"),
            f1=number_in(one, "acceptable", "f1"),
            **{key: number_in(one, key) for key in names},
        )
        for name, one in found.items()
    ]


def raters_agreement(dataset: PreferenceDataset) -> PairAgreement:
    """How often a rater is right by the others, on held-out tasks. Reads every label the first time."""
    key = f"rater-accuracy-{dataset.pk}-{dataset.digest}"
    known: PairAgreement | None = cache.get(key)
    if known is None:
        rounds = list(dataset.rounds.select_related("protocol"))
        known = rater_accuracy(held_out_judgements(rounds), rule=cast(Rule, dataset.rule))
        cache.set(key, known, timeout=None)
    return known


def _by_strength(found: Any, raters: PairAgreement) -> Chart | None:
    if not isinstance(found, dict) or not found:
        return None
    strengths = sorted(int(key) for key in found if str(key).isdigit())
    return grouped_bars(
        key="by-strength",
        title="How often it is right, by strength of the preference",
        x_label="how much better",
        y_label="same side",
        groups=[STRENGTHS.get(strength, "tie") for strength in strengths],
        series=[
            ("reward model", [number_in(found, str(strength), "accuracy") for strength in strengths]),
            ("a rater, by the others", [raters.by_strength.get(s, Share()).rate for s in strengths]),
        ],
        intervals=[_interval(found[str(strength)]) for strength in strengths],
        note="The lines on the bars are 95 % intervals. Nobody can be right more often than raters agree.",
    )


def _interval(found: Any) -> tuple[float, float] | None:
    low, high = number_in(found, "low"), number_in(found, "high")
    return None if low is None or high is None else (low, high)


def _calibration(found: Any) -> Chart | None:
    if not isinstance(found, list):
        return None
    bins = [
        Bin(predicted=predicted, observed=observed, n=int(n))
        for row in found
        if (predicted := number_in(row, "predicted")) is not None
        and (observed := number_in(row, "observed")) is not None
        and (n := number_in(row, "count"))
    ]
    if not bins:
        return None
    return calibration_chart(key="calibration", title="Is it as sure as it is right?", bins=bins)


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """Rows of one table and split that will be used, and those that are too long."""

    table: str
    split: str
    kept: int
    dropped: int
    longest: int
    ties: int


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """training.rlhf.run_dir.Preflight, ready to be shown."""

    ok: bool
    errors: list[dict[str, str]]  # what, where, do
    warnings: list[str]
    rows: list[TableRows]
    sample: str
    bos: float | None
    eos_is_last: bool | None
    steps: float | None
    seconds: float | None
    parameters: float | None
    trained_parameters: float | None
    memory_bytes: float | None
    memory_available_bytes: float | None
    disk_bytes: float | None
    disk_available_bytes: float | None
    device: str


def _in_words(table: str, names: dict[str, str]) -> str:
    """
    >>> _in_words("pairs", {}), _in_words("of-may/pairs", {"of-may": "Of May"})
    ('pairs', 'Of May: pairs')
    """
    dataset, _, table = table.rpartition("/")
    return f"{names.get(dataset, dataset)}: {table}" if dataset else table


def preflight_report(found: dict[str, Any], names: dict[str, str] | None = None) -> PreflightReport | None:
    """What the check found; None before it. `names`: further datasets by what the run calls them."""
    if not found:
        return None
    template = found.get("template") or {}
    estimate = found.get("estimate") or {}
    return PreflightReport(
        ok=bool(found.get("ok")),
        errors=found.get("errors") or [],
        warnings=found.get("warnings") or [],
        rows=[
            TableRows(
                table=_in_words(table, names or {}),
                split=split,
                **{name: int(figures.get(name) or 0) for name in ("kept", "dropped", "longest", "ties")},
            )
            for table, splits in (found.get("rows") or {}).items()
            for split, figures in splits.items()
            if figures.get("kept") or figures.get("dropped")
        ],
        sample=str(template.get("sample") or ""),
        bos=number_in(template, "bos"),
        eos_is_last=template.get("eos_is_last"),
        device=str(estimate.get("device") or ""),
        **{
            name: number_in(estimate, name)
            for name in (
                "steps",
                "seconds",
                "parameters",
                "trained_parameters",
                "memory_bytes",
                "memory_available_bytes",
                "disk_bytes",
                "disk_available_bytes",
            )
        },
    )
