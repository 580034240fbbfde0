"""Who prefers a new policy, and how a reward model does: what the pages show of an evaluation."""

from typing import Any

from django.contrib.auth.models import User
from django.test import Client

from labeling.models import Policy, Project
from tests import factories
from tests.training.run_pages import manager, put_in
from tests.training.stage import make_run
from training.models import Artifact, GateDecision, Run

__all__ = ["manager"]  # a fixture
State = Run.State
POLICY: dict[str, Any] = {
    "prompts": 40, "win_rate_reward_model": 0.71, "win_rate_low": 0.6, "win_rate_high": 0.8,
    "win_rate_length_controlled": 0.66, "kl": 3.0, "length_new": 20.0, "length_old": 18.0,
    "evaluators": [
        {"name": "judge", "kind": "judge", "learnt_from": False, "win_rate": 0.55, "low": 0.4, "high": 0.7,
         "n": 36, "length_controlled": 0.52, "asked": 40, "nonsense": 0.1, "counts": {"inconsistent": 5}},
        {"name": "ensemble", "kind": "ensemble", "learnt_from": True, "win_rate": 0.9, "low": 0.8,
         "high": 0.95, "n": 40, "length_controlled": 0.88, "disagreement_new": 0.5, "disagreement_old": 0.25},
        {"name": "mute", "kind": "judge", "error": {"what": "The judge <b>does</b> not answer."}},
    ],
}  # fmt: skip


def test_people_reward_model_and_judge_stand_side_by_side_with_intervals(
    manager: Client, project: Project, ann: User
) -> None:
    run = put_in(make_run(project, ann), State.COMPLETE, evaluation=POLICY)
    policy = factories.make_policy(project, "new", Policy.State.CANDIDATE)
    Artifact.objects.create(run=run, kind="policy", folder="/x", policy=policy)
    page = manager.get(run.get_absolute_url())
    assert [row.name for row in page.context["verdicts"].rows] == [
        "reward model",
        "judge",
        "ensemble",
        "mute",
    ]
    GateDecision.objects.create(
        policy=policy, promoted=True, win_rate=0.64, low=0.55, high=0.72, labels=120, reason="They like it."
    )
    for address in (run.get_absolute_url(), policy.get_absolute_url()):
        page = manager.get(address)
        chart = page.context["verdicts"].chart
        assert [row[:4] for row in chart.rows] == [
            ["people", "64 %", "55 %", "72 %"],
            ["reward model", "71 %", "60 %", "80 %"],
            ["judge", "55 %", "40 %", "70 %"],
            ["ensemble", "90 %", "80 %", "95 %"],
        ]
        text = page.content.decode()
        assert "10 % of its answers were nonsense" in text and "5 times it chose a place" in text
        assert "0.5 standard deviations apart" in text
        assert "&lt;b&gt;does" in text and "<b>does" not in text


def test_an_evaluation_without_comparisons_shows_none(manager: Client, project: Project, ann: User) -> None:
    run = put_in(make_run(project, ann), State.COMPLETE, evaluation={"kl": 1.0, "length_new": 3})
    assert manager.get(run.get_absolute_url()).context["verdicts"] is None
    put_in(run, State.COMPLETE, evaluation={"evaluators": "odd"})
    assert manager.get(run.get_absolute_url()).status_code == 200


def test_a_reward_model_is_shown_beside_length_its_raters_and_its_own_confidence(
    manager: Client, project: Project, ann: User
) -> None:
    found = {
        "accuracy": 0.7, "low": 0.6, "high": 0.79, "pairs": 90, "ece": 0.08,
        "by_strength": {"1": {"accuracy": 0.6, "pairs": 40, "low": 0.45, "high": 0.74},
                        "4": {"accuracy": 0.9, "pairs": 20, "low": 0.7, "high": 0.97}},
        "calibration": [{"predicted": 0.6, "observed": 0.55, "count": 40}],
        "length_baseline": {"rule": "shorter is better", "accuracy": 0.58, "low": 0.5, "high": 0.66},
        "ratings": {"n": 50, "spearman": 0.6, "acceptable": {
            "from": 4, "n": 50, "accuracy": 0.8, "low": 0.7, "high": 0.9, "precision": 0.75, "recall": 0.6,
            "f1": 0.67, "actual": 20}},
    }  # fmt: skip
    run = put_in(make_run(project, ann, "reward_model"), State.COMPLETE, evaluation=found)
    page = manager.get(run.get_absolute_url())
    text = page.content.decode()
    for words in ("the shorter one always won", "interval 50 % to 66 %", "(ECE)", "(precision)", "67 %"):
        assert words in text, words
    chart = page.context["reward_evaluation"].by_strength
    assert [row[-2:] for row in chart.rows] == [["45 %", "74 %"], ["70 %", "97 %"]]
    assert len([line for line in chart.lines if line.kind == "interval"]) == 6
