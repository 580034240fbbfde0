"""Plackett-Luce: what has to hold of any ranking, worked examples, and ties against all their orders."""

import itertools
import math

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from training.rlhf.losses.preference_loss import comparison_loss  # noqa: E402
from training.rlhf.losses.ranking_loss import plackett_luce  # noqa: E402

SCORES = [0.3, -1.2, 2.0, 0.9]


def cost(scores: list[float], ranks: list[int]) -> float:
    losses = plackett_luce(torch.tensor([scores]), torch.tensor([ranks]), mask=torch.ones(1, len(ranks)) > 0)
    return float(losses[0])


def test_a_ranking_of_two_costs_what_the_comparison_costs() -> None:
    for difference in (-3.0, 0.0, 0.7, 40.0):
        pair = comparison_loss(torch.tensor([difference]), margin=torch.zeros(1), p=torch.ones(1))
        assert cost([1.0 + difference, 1.0], [1, 2]) == pytest.approx(float(pair[0]), abs=1e-6)


def test_the_probabilities_of_all_orders_add_up_to_one() -> None:
    orders = itertools.permutations([1, 2, 3, 4])
    assert sum(math.exp(-cost(SCORES, list(ranks))) for ranks in orders) == pytest.approx(1, abs=1e-6)


def test_three_texts_worth_one_two_and_three_by_hand() -> None:
    worth = [math.log(1), math.log(2), math.log(3)]
    assert math.exp(-cost(worth, [3, 2, 1])) == pytest.approx(3 / 6 * 2 / 3)
    assert math.exp(-cost(worth, [1, 2, 3])) == pytest.approx(1 / 6 * 2 / 5)
    # Tied for the first place: one of 6, the other of 6 less half of the 1 + 2 that are tied.
    assert math.exp(-cost(worth, [1, 1, 2])) == pytest.approx((1 / 6) * (2 / 4.5))


def test_adding_the_same_to_every_score_changes_nothing() -> None:
    for ranks in ([1, 2, 3, 4], [1, 2, 2, 3], [1, 1, 1, 1]):
        moved = cost([score + 7 for score in SCORES], ranks)
        assert moved == pytest.approx(cost(SCORES, ranks), abs=1e-5)


def test_neither_the_order_of_the_completions_nor_gaps_between_ranks_matter() -> None:
    said = cost(SCORES, [2, 3, 1, 2])
    assert cost(SCORES[::-1], [2, 1, 3, 2]) == pytest.approx(said, abs=1e-6)
    assert cost(SCORES, [5, 9, 0, 5]) == pytest.approx(said, abs=1e-6)


def test_a_tie_is_cheapest_where_the_scores_are_equal() -> None:
    assert cost([1.0, 1.0], [1, 1]) == pytest.approx(math.log(2))
    assert cost([1.5, 1.0], [1, 1]) == pytest.approx(cost([1.0, 1.5], [1, 1]))
    assert cost([1.5, 1.0], [1, 1]) > math.log(2)


@pytest.mark.parametrize("ranks", [[1, 1, 2, 3], [1, 2, 2, 3], [1, 2, 2, 2], [1, 1, 2, 2]])
def test_ties_are_closer_to_the_mean_over_their_orders_than_breslows(ranks: list[int]) -> None:
    orders = [
        order
        for order in itertools.permutations([1, 2, 3, 4])
        if all(order[i] < order[j] for i in range(4) for j in range(4) if ranks[i] < ranks[j])
    ]
    exact = sum(math.exp(-cost(SCORES, list(order))) for order in orders) / len(orders)
    breslow = math.prod(
        math.exp(SCORES[i]) / sum(math.exp(SCORES[j]) for j in range(4) if ranks[j] >= ranks[i])
        for i in range(4)
    )
    ours = math.exp(-cost(SCORES, ranks))
    assert abs(math.log(ours / exact)) < 0.6 * abs(math.log(breslow / exact))


def test_padding_changes_neither_losses_nor_gradients() -> None:
    short, long = [0.4, -0.3], SCORES
    padded = torch.tensor([[*short, 99.0, -99.0], long], requires_grad=True)
    ranks = torch.tensor([[2, 1, 1, 2], [1, 2, 2, 3]])
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    losses = plackett_luce(padded, ranks, mask=mask)
    assert losses.tolist() == pytest.approx([cost(short, [2, 1]), cost(long, [1, 2, 2, 3])])
    torch.autograd.backward(losses.sum())
    gradient = padded.grad
    assert gradient is not None
    assert gradient[0, 2:].tolist() == [0, 0] and bool(torch.isfinite(gradient).all())
    assert gradient.sum(1).tolist() == pytest.approx([0, 0], abs=1e-6)  # shifts cost nothing


def test_a_gradient_is_what_a_small_step_changes() -> None:
    scores = torch.tensor([SCORES], dtype=torch.float32, requires_grad=True)
    ranks, mask = torch.tensor([[2, 2, 1, 3]]), torch.ones(1, 4) > 0
    torch.autograd.backward(plackett_luce(scores, ranks, mask=mask).sum())
    assert scores.grad is not None
    for place in range(4):
        step = [score + (0.01 if number == place else 0) for number, score in enumerate(SCORES)]
        back = [score - (0.01 if number == place else 0) for number, score in enumerate(SCORES)]
        slope = (cost(step, [2, 2, 1, 3]) - cost(back, [2, 2, 1, 3])) / 0.02
        assert float(scores.grad[0, place]) == pytest.approx(slope, abs=2e-4)


def test_scores_far_apart_stay_numbers() -> None:
    assert cost([1e4, -1e4, 0.0], [1, 3, 2]) == pytest.approx(0)
    assert cost([-1e4, 1e4, 0.0], [1, 3, 2]) == pytest.approx(3e4)
