"""The loss of a comparison: worked examples and what must hold whatever the numbers."""

import math

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.training

from training.rlhf.losses.preference_loss import (  # noqa: E402
    comparison_loss,
    implicit_rewards,
    mean_over_elements,
    negative_log_likelihood,
    share_above,
)


def loss_of(difference: float, *, margin: float = 0.0, p: float = 1.0) -> float:
    losses = comparison_loss(torch.tensor([difference]), margin=torch.tensor([margin]), p=torch.tensor([p]))
    return float(losses[0])


def test_a_sure_comparison_costs_minus_log_sigmoid_as_in_instructgpt() -> None:
    assert loss_of(0.0) == pytest.approx(math.log(2))
    assert loss_of(math.log(3)) == pytest.approx(math.log(4 / 3))  # sigmoid(log 3) is 3/4
    assert loss_of(-math.log(3)) == pytest.approx(math.log(4))


def test_a_margin_moves_the_difference_that_is_wanted() -> None:
    assert loss_of(3.0, margin=3.0) == pytest.approx(loss_of(0.0))
    assert loss_of(2.0, margin=1.0) > loss_of(2.0)


def test_a_tie_is_cheapest_where_both_are_equal_and_costs_the_same_on_both_sides() -> None:
    assert loss_of(0.0, p=0.5) == pytest.approx(math.log(2))
    assert loss_of(1.0, p=0.5) == pytest.approx(loss_of(-1.0, p=0.5))
    assert loss_of(1.0, p=0.5) > loss_of(0.0, p=0.5)


def test_a_soft_label_is_cheapest_at_its_own_log_odds() -> None:
    best = math.log(0.75 / 0.25)
    cost = loss_of(best, p=0.75)
    assert cost < loss_of(best + 0.1, p=0.75)
    assert cost < loss_of(best - 0.1, p=0.75)


def test_extreme_differences_stay_numbers() -> None:
    assert loss_of(1000.0) == pytest.approx(0.0)
    assert loss_of(-1000.0) == pytest.approx(1000.0)


def test_a_ranking_counts_as_one_element_however_long_it_is() -> None:
    pair = mean_over_elements(torch.tensor([2.0]), weight=torch.tensor([1.0]), elements=1)
    ranking = mean_over_elements(torch.full((6,), 2.0), weight=torch.full((6,), 1 / 6), elements=1)
    both = mean_over_elements(torch.full((7,), 2.0), weight=torch.tensor([1.0] + [1 / 6] * 6), elements=2)
    assert float(pair) == pytest.approx(float(ranking)) == pytest.approx(float(both))


def test_the_implicit_reward_is_the_log_ratio_times_beta() -> None:
    reward = implicit_rewards(torch.tensor([-10.0]), reference_logps=torch.tensor([-12.0]), beta=0.1)
    assert reward.tolist() == pytest.approx([0.2])


def test_likelihood_is_a_mean_over_the_tokens_that_count() -> None:
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert float(negative_log_likelihood(logps, mask=mask, weight=torch.ones(2))) == pytest.approx(2.0)
    assert float(negative_log_likelihood(logps, mask=torch.zeros(2, 3), weight=torch.ones(2))) == 0.0


def test_likelihood_counts_the_tokens_of_a_row_as_much_as_the_row() -> None:
    logps, mask = torch.tensor([[-1.0, -3.0], [-6.0, -6.0]]), torch.ones(2, 2)
    weight = torch.tensor([1.0, 0.25])
    assert float(negative_log_likelihood(logps, mask=mask, weight=weight)) == pytest.approx(
        1.75
    )  # 4 + 12 / 4


def test_accuracy_leaves_ties_out() -> None:
    differences, p = torch.tensor([1.0, -1.0, 5.0]), torch.tensor([1.0, 0.8, 0.5])
    assert float(share_above(differences, p=p)) == 0.5
    assert math.isnan(float(share_above(differences, p=torch.full((3,), 0.5))))
