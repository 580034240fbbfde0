"""Figures of ratings, against examples worked by hand and against SciPy."""

import doctest
import json
import random
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.training

from training.rlhf.measures import rating_figures as figures  # noqa: E402
from training.rlhf.rows import rated as rated_rows  # noqa: E402
from training.rlhf.rows.rated import Rated  # noqa: E402


def rated(rating: float, *, prompt: str = "p", text: str = "x", rater: int | None = None) -> Rated:
    return Rated(
        line=1,
        prompt=[{"role": "user", "content": prompt}],
        completion=[{"role": "assistant", "content": text}],
        ratings=(rating,),
        rater=rater,
    )


def found(rows: list[Rated], scores: list[float], **options: Any) -> dict[str, Any]:
    figured = figures.rating_figures(rows, scores, **options)
    assert figured is not None
    json.dumps(figured, allow_nan=False)
    return figured


def test_the_examples_in_the_docstrings_hold() -> None:
    for module in (figures, rated_rows):
        tested = doctest.testmod(module)
        assert tested.attempted and not tested.failed


def test_rank_correlations_by_hand() -> None:
    """One neighbouring pair of four the wrong way round: rho 1 - 6 * 2 / 60, tau (5 - 1) / 6."""
    scores, ratings = [0.1, 0.2, 0.4, 0.3], [1, 2, 3, 4]
    assert figures.spearman(scores, ratings) == pytest.approx(0.8)
    assert figures.kendall(scores, ratings) == pytest.approx(4 / 6)


@pytest.mark.parametrize("ties", [2, 5, 40])
def test_rank_correlations_are_scipys_whatever_the_ties(ties: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    pick = random.Random(ties)
    ratings = [pick.randrange(5) for _ in range(60)]
    scores = [float(pick.randrange(ties) + rating) for rating in ratings]
    assert figures.spearman(scores, ratings) == pytest.approx(stats.spearmanr(scores, ratings).statistic)
    assert figures.kendall(scores, ratings) == pytest.approx(stats.kendalltau(scores, ratings).statistic)
    assert figures.average_ranks(scores).tolist() == stats.rankdata(scores).tolist()


def test_where_nothing_varies_there_is_no_correlation() -> None:
    assert figures.spearman([1, 1, 1], [1, 2, 3]) is None and figures.kendall([1, 1, 1], [1, 2, 3]) is None
    assert figures.spearman([1, 2, 3], [4, 4, 4]) is None and figures.kendall([], []) is None
    assert figures.spearman([], []) is None
    alone = found([rated(3)], [0.1])
    assert (
        alone["spearman"] is alone["kendall"] is alone["order"] is alone["mae"] is alone["acceptable"] is None
    )


def test_precision_recall_and_f1_by_hand() -> None:
    """Said to be acceptable: 3, of which 2 are; 4 are in all."""
    ratings, said = [4, 5, 4, 5, 1, 2], [True, True, False, False, True, False]
    rows = [rated(rating, prompt=str(number)) for number, rating in enumerate(ratings)]
    one = found(rows, [0.0] * 6, finds_acceptable=said, acceptable_from=4.0)["acceptable"]
    assert (one["precision"], one["recall"]) == pytest.approx((2 / 3, 1 / 2))
    assert one["f1"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert (one["accuracy"], one["n"], one["predicted"], one["actual"]) == (0.5, 6, 3, 4)
    assert one["low"] < 0.5 < one["high"] and one["from"] == 4


def test_precision_without_a_yes_and_recall_without_one_to_find_are_left_open() -> None:
    assert figures.classification([False, False], [True, False])["precision"] is None
    assert figures.classification([True, False], [False, False])["recall"] is None
    assert figures.classification([True, False], [False, False])["f1"] == 0
    assert figures.classification([False], [False])["f1"] is None


def test_distances_beside_what_one_answer_and_another_rater_would_get() -> None:
    rows = [rated(1, text="a", rater=1), rated(3, text="a", rater=2), rated(5, text="b"), rated(5, text="c")]
    one = found(rows, [0, 0, 1, 1], expected=[2.0, 2.0, 4.0, 5.0])
    assert one["mae"] == pytest.approx((1 + 1 + 1 + 0) / 4)
    assert one["mae_of_median"] == pytest.approx((3 + 1 + 1 + 1) / 4)  # 4, between 3 and 5
    assert one["mae_of_raters"] == pytest.approx(2)  # text a alone has two


def test_completions_of_one_prompt_are_put_in_order_by_the_mean_of_their_raters() -> None:
    rows = [
        rated(1, text="a"), rated(5, text="a"),  # 3 on average
        rated(4, text="b"),
        rated(4, text="c"),  # as good as b: says nothing
        rated(1, prompt="other", text="d"),  # alone on its prompt
    ]  # fmt: skip
    one = found(rows, [0.0, 0.0, 1.0, -1.0, 9.0])["order"]
    assert (one["accuracy"], one["pairs"]) == (0.5, 2)
    assert one["low"] < 0.5 < one["high"]


def test_an_interval_of_the_correlation_needs_prompts_and_narrows_with_them() -> None:
    pick = random.Random(3)

    def width(prompts: int, *, raters: int = 1) -> float | None:
        rows, scores = [], []
        for number in range(prompts):
            rating, score = pick.randrange(1, 6), pick.gauss(0, 1)
            rows += [rated(rating, prompt=str(number), text=str(number))] * raters
            scores += [score + rating] * raters
        one = found(rows, scores)
        if one["spearman_low"] is None:
            return None
        assert one["spearman_low"] < one["spearman"] < one["spearman_high"]
        return float(one["spearman_high"] - one["spearman_low"])

    assert width(9) is None
    few, many, again = width(40), width(640), width(40, raters=16)
    assert few is not None and many is not None and again is not None
    assert many < 0.5 * few and again > 1.5 * many  # to ask the same raters more often is not more prompts


def test_no_ratings_are_no_figures() -> None:
    assert figures.rating_figures([], []) is None
