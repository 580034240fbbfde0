"""The loss of a rating: what has to hold of any cut points, worked examples, and logistic regression."""

import math

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from training.rlhf.losses.rating_loss import (  # noqa: E402
    ordered,
    ordinal_loss,
    ordinal_probabilities,
    regression_loss,
    starting_cut_points,
    unordered,
)

CUTS = torch.tensor([-2.0, -0.5, 0.1, 3.0])  # five ratings


def likelihoods(score: float, cuts: torch.Tensor = CUTS) -> list[float]:
    count = len(cuts) + 1
    losses = ordinal_loss(torch.full((count,), score), torch.arange(count), cut_points=cuts)
    return [math.exp(-loss) for loss in losses.tolist()]


@pytest.mark.parametrize("score", [-9.0, -0.4, 0.0, 2.0, 9.0])
def test_the_likelihoods_of_all_ratings_add_up_to_one(score: float) -> None:
    assert sum(likelihoods(score)) == pytest.approx(1, abs=1e-6)
    (probabilities,) = ordinal_probabilities(torch.tensor([score]), cut_points=CUTS).tolist()
    assert probabilities == pytest.approx(likelihoods(score), abs=1e-6)


def test_three_ratings_by_hand() -> None:
    """Cut points at the log-odds of 1/4 and 3/4: the middle one has one half at a score of 0."""
    cuts = torch.tensor([-math.log(3), math.log(3)])
    assert likelihoods(0.0, cuts) == pytest.approx([0.25, 0.5, 0.25])
    assert likelihoods(math.log(3), cuts) == pytest.approx([0.1, 0.4, 0.5])  # 1/10, 1/2 - 1/10


def test_two_ratings_are_logistic_regression() -> None:
    scores, said = torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([1, 0, 1])
    losses = ordinal_loss(scores, said, cut_points=torch.tensor([0.4]))
    expected = F.binary_cross_entropy_with_logits(scores - 0.4, said.float(), reduction="none")
    assert losses.tolist() == pytest.approx(expected.tolist())


def test_moving_scores_and_cut_points_together_changes_nothing() -> None:
    scores, said = torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([0, 2, 4])
    here = ordinal_loss(scores, said, cut_points=CUTS)
    there = ordinal_loss(scores + 5, said, cut_points=CUTS + 5)
    assert there.tolist() == pytest.approx(here.tolist(), abs=1e-5)


def test_a_higher_score_makes_a_rating_at_least_that_high_more_likely() -> None:
    for rating in range(1, 5):
        shares = [sum(likelihoods(score)[rating:]) for score in (-2.0, 0.0, 2.0)]
        assert shares == sorted(shares) and shares[0] < shares[2]


def test_scores_far_out_and_cut_points_close_together_stay_numbers() -> None:
    cuts = torch.tensor([0.0, 1e-6, 5.0], requires_grad=True)
    scores = torch.tensor([-200.0, 200.0, 200.0, 0.0], requires_grad=True)
    losses = ordinal_loss(scores, torch.tensor([3, 0, 1, 1]), cut_points=cuts)
    assert losses[:2].tolist() == pytest.approx([205.0, 200.0])
    torch.autograd.backward(losses.sum())
    assert cuts.grad is not None and scores.grad is not None
    assert bool(torch.isfinite(losses).all() and torch.isfinite(cuts.grad).all())
    assert bool(torch.isfinite(scores.grad).all())


def test_ordered_cut_points_rise_and_come_back_as_they_were() -> None:
    assert ordered(*unordered(CUTS)).tolist() == pytest.approx(CUTS.tolist(), abs=1e-6)
    wild = ordered(torch.tensor([3.0]), torch.tensor([-20.0, 40.0, -3.0]))
    assert bool((wild.diff() >= 0).all())
    assert ordered(*unordered(torch.tensor([0.7]))).tolist() == pytest.approx([0.7])


def test_a_model_that_knows_nothing_yet_says_how_often_each_rating_was_given() -> None:
    cuts = starting_cut_points(torch.tensor([100, 500, 300, 100]))
    (probabilities,) = ordinal_probabilities(torch.zeros(1), cut_points=cuts).tolist()
    assert probabilities == pytest.approx([0.1, 0.5, 0.3, 0.1], abs=1e-3)
    never = starting_cut_points(torch.tensor([0, 10, 0, 10]))
    assert bool(torch.isfinite(never).all() and (never.diff() > 0).all())


def test_the_loss_of_a_regression_is_in_standard_deviations() -> None:
    losses = regression_loss(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 5.0]), mean=3.0, std=2.0)
    assert losses.tolist() == [1.0, 0.0]
