"""Agreement and win rates against published examples, another library, and cases worked out by hand."""

import doctest
import math
import random
from typing import Any

import numpy as np
import pytest

from labeling import agreement
from labeling.agreement import (
    Outcome,
    Share,
    krippendorff_alpha,
    pair_agreement,
    rater_accuracy,
    wilson,
    win_rate,
)
from labeling.comparisons import Judgement

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
KRIPPENDORFF_2011 = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 .
"""


def table(text: str) -> list[list[float | None]]:
    return [
        [None if cell == "." else float(cell) for cell in line.split()] for line in text.strip().splitlines()
    ]


def units(rows: list[list[float | None]]) -> list[list[float]]:
    return [[value for value in column if value is not None] for column in zip(*rows, strict=True)]


def label(rater: int, vote: int | None, task: int = 1) -> Judgement:
    value: dict[str, Any] = {"outcome": "both_bad"}
    if vote == 0:
        value = {"outcome": "tie"}
    elif vote is not None:
        value = {"outcome": "preferred", "preferred": 7 if vote > 0 else 8, "strength": abs(vote)}
    return Judgement(task=task, prompt=task, rater=rater, kind="comparison", value=value, completions=(8, 7))


def test_the_examples_in_the_module_hold() -> None:
    assert doctest.testmod(agreement).failed == 0


def test_alpha_is_that_of_krippendorffs_own_worked_example() -> None:
    said = units(table(KRIPPENDORFF_2011))
    assert krippendorff_alpha(said, level="nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(said, level="ordinal") == pytest.approx(0.815, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_evalicas(level: Any, seed: int) -> None:
    evalica = pytest.importorskip("evalica")
    pandas = pytest.importorskip("pandas")
    random = np.random.default_rng(seed)
    truth = random.integers(1, 6, size=40)
    rows: list[list[float | None]] = [
        [
            None
            if random.random() < 0.3
            else float(value if random.random() < 0.6 else random.integers(1, 6))
            for value in truth
        ]
        for _ in range(4)
    ]
    theirs = evalica.alpha(pandas.DataFrame(rows, dtype=float), distance=level).alpha
    assert krippendorff_alpha(units(rows), level=level) == pytest.approx(theirs, abs=1e-9)


def test_alpha_is_none_where_nothing_can_be_said() -> None:
    assert krippendorff_alpha([[1], [2]], level="nominal") is None
    assert krippendorff_alpha([[3, 3], [3, 3]], level="ordinal") is None


def test_alpha_of_random_answers_is_near_zero() -> None:
    said = np.random.default_rng(0).integers(1, 5, size=(3000, 2)).tolist()
    assert krippendorff_alpha(said, level="nominal") == pytest.approx(0, abs=0.05)


def test_two_ties_agree_and_a_tie_against_a_side_counts_half() -> None:
    assert pair_agreement([label(1, 0), label(2, 0)]).overall == Share(1.0, 1)
    assert pair_agreement([label(1, 0), label(2, 3)]).overall == Share(0.5, 1)


def test_both_bad_takes_no_side() -> None:
    found = pair_agreement([label(1, None), label(2, 3)])
    assert found.overall == Share(None, 0)
    assert found.tasks == 0


def test_agreement_by_strength_looks_at_what_the_others_said() -> None:
    said = [label(1, 4, task=1), label(2, 1, task=1), label(1, 4, task=2), label(2, -1, task=2)]
    found = pair_agreement(said)
    assert found.overall == Share(0.5, 2)
    assert found.by_strength == {1: Share(0.5, 2), 4: Share(0.5, 2)}
    assert found.tasks == 2


def test_raters_of_different_tasks_are_not_compared() -> None:
    assert pair_agreement([label(1, 4, task=1), label(2, -4, task=2)]).overall.n == 0


def test_rankings_agree_pair_by_pair() -> None:
    def ranked(rater: int, ranks: dict[str, int]) -> Judgement:
        return Judgement(
            task=1, prompt=1, rater=rater, kind="ranking", value={"ranks": ranks}, completions=(1, 2, 3)
        )

    found = pair_agreement([ranked(1, {"1": 1, "2": 2, "3": 3}), ranked(2, {"1": 1, "2": 3, "3": 2})])
    assert found.overall.rate == pytest.approx(2 / 3)
    assert found.overall.n == 3
    assert found.by_strength == {}


def test_the_win_rate_counts_a_tie_half_and_is_the_same_for_the_same_seed() -> None:
    outcomes = [Outcome(prompt, score) for prompt, score in enumerate([1.0] * 60 + [0.5] * 20 + [0.0] * 20)]
    found = win_rate(outcomes, seed=3)
    assert found is not None
    assert found.rate == pytest.approx(0.7)
    assert found.n == 100
    assert found == win_rate(outcomes, seed=3)
    assert found != win_rate(outcomes, seed=4)


def test_the_interval_is_near_the_normal_approximation_for_many_prompts() -> None:
    outcomes = [Outcome(prompt, float(prompt % 10 < 6)) for prompt in range(1000)]
    found = win_rate(outcomes, seed=0)
    assert found is not None
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert found.low == pytest.approx(0.6 - half, abs=0.006)
    assert found.high == pytest.approx(0.6 + half, abs=0.006)


def test_labels_on_one_prompt_count_as_one_opinion() -> None:
    """Ten labels on each of ten prompts know less than a hundred prompts."""
    clustered = win_rate([Outcome(i % 10, float(i % 10 < 6)) for i in range(100)], seed=0)
    spread = win_rate([Outcome(i, float(i % 10 < 6)) for i in range(100)], seed=0)
    assert clustered is not None
    assert spread is not None
    assert clustered.rate == spread.rate
    assert clustered.high - clustered.low > 2 * (spread.high - spread.low)


@pytest.mark.parametrize("wins", [1, 2, 3])
def test_a_few_wins_prove_nothing(wins: int) -> None:
    found = win_rate([Outcome(prompt, 1.0) for prompt in range(wins)], seed=0)
    assert found is not None
    assert found.low < 0.5


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        scores = (random.random(40) < 0.65).astype(float)
        found = win_rate([Outcome(i, score) for i, score in enumerate(scores)], seed=trial, resamples=400)
        assert found is not None
        covered += found.low <= 0.65 <= found.high
    assert covered / 200 >= 0.92


def test_without_outcomes_there_is_no_win_rate() -> None:
    assert win_rate([], seed=0) is None


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # Brown, Cai and DasGupta (2001): 0 of 10 gives (0, 0.278).
    assert list(wilson(0.0, 10)) == pytest.approx([0.0, 0.2775], abs=1e-3)


def test_the_web_process_does_not_load_numpy_for_it() -> None:
    import subprocess
    import sys

    code = "import sys, labeling.agreement; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("right", [0.75, 0.85])
def test_a_rater_agrees_with_another_as_often_as_both_are_right_or_both_wrong(right: float) -> None:
    rng = random.Random(0)
    tasks = [
        [label(rater, 2 if rng.random() < right else -2, task=task) for rater in (1, 2)]
        for task in range(20_000)
    ]
    found = rater_accuracy(tasks, rule="each_label")
    assert found.overall.rate == pytest.approx(right**2 + (1 - right) ** 2, abs=0.01)
    assert found.by_strength.keys() == {2}


def test_a_rater_is_held_against_what_the_others_come_to_and_ties_of_theirs_say_nothing() -> None:
    said = [label(1, 3), label(2, 1), label(3, 0), label(4, -1)]
    assert rater_accuracy([said], rule="majority").overall == Share(0.25, 2)  # the tie and the odd one out
    assert rater_accuracy([[label(1, 2)], [label(2, None), label(3, 2)]], rule="majority").overall.n == 0
