"""The arithmetic of policy gradients: worked examples, and what has to hold whatever the numbers."""

import math

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor
from transformers import get_scheduler

from training.rlhf.losses import policy_gradient as pg
from training.rlhf.losses import token_logps
from training.rlhf.losses.policy_gradient import RunningScale

MASK = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
TOKENS = float(MASK.sum())


def drawn(seed: int) -> Tensor:
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed)) * MASK


def test_the_score_falls_on_the_last_token_and_each_token_pays_its_own_kl() -> None:
    rewards = pg.shaped_rewards(
        torch.tensor([5.0, -1.0]),
        logps=torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]]),
        reference_logps=torch.tensor([[-2.0, -2.0, -1.0], [-4.0, 0.0, 0.0]]),
        mask=torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
        kl_coefficient=0.1,
    )
    assert rewards.tolist() == [
        [pytest.approx(-0.1), pytest.approx(0.0), pytest.approx(5.2)],
        [pytest.approx(-1.3), 0.0, 0.0],
    ]


def test_the_rewards_of_a_completion_add_up_to_its_score_less_its_kl() -> None:
    logps, reference, scores = drawn(1), drawn(2), torch.tensor([1.0, 2.0, 3.0])
    rewards = pg.shaped_rewards(scores, logps=logps, reference_logps=reference, mask=MASK, kl_coefficient=0.3)
    expected = scores - 0.3 * (logps - reference).sum(dim=1)
    torch.testing.assert_close(rewards.sum(dim=1), expected)


def test_advantages_without_values_or_discount_are_the_reward_to_go() -> None:
    found = pg.generalised_advantages(
        torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]]),
        values=torch.zeros(2, 3),
        mask=torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
        gamma=1.0,
        lam=1.0,
    )
    assert found.advantages.tolist() == [[7.0, 6.0, 4.0], [24.0, 16.0, 0.0]]
    assert found.returns.tolist() == found.advantages.tolist()


def test_advantages_worked_by_hand() -> None:
    # gamma 0.5, lam 0.5: d = (0 + 0.5*4 - 2, 0 + 0.5*6 - 4, 8 - 6) = (0, -1, 2), A_2 = 2,
    # A_1 = -1 + 0.25*2 = -0.5, A_0 = 0 + 0.25*-0.5 = -0.125.
    found = pg.generalised_advantages(
        torch.tensor([[0.0, 0.0, 8.0]]),
        values=torch.tensor([[2.0, 4.0, 6.0]]),
        mask=torch.ones(1, 3),
        gamma=0.5,
        lam=0.5,
    )
    assert found.advantages.tolist() == [[-0.125, -0.5, 2.0]]
    assert found.returns.tolist() == [[1.875, 3.5, 8.0]]


def test_with_lam_0_an_advantage_is_the_error_of_one_step() -> None:
    rewards, values = drawn(3), drawn(4)
    found = pg.generalised_advantages(rewards, values=values, mask=MASK, gamma=0.9, lam=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1)], dim=1)
    torch.testing.assert_close(found.advantages, (rewards + 0.9 * following - values) * MASK)


def test_with_lam_1_values_change_the_advantage_and_not_the_return() -> None:
    rewards = drawn(5)
    one, other = (
        pg.generalised_advantages(rewards, values=drawn(seed), mask=MASK, gamma=0.9, lam=1.0).returns
        for seed in (6, 7)
    )
    torch.testing.assert_close(one, other)


def test_perfect_values_leave_no_advantage() -> None:
    rewards = drawn(8)
    values = pg.generalised_advantages(
        rewards, values=torch.zeros_like(rewards), mask=MASK, gamma=0.9, lam=1.0
    ).returns
    found = pg.generalised_advantages(rewards, values=values, mask=MASK, gamma=0.9, lam=0.7)
    torch.testing.assert_close(found.advantages, torch.zeros_like(rewards), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.returns, values)


def test_padding_changes_no_advantage() -> None:
    rewards, values = drawn(9), drawn(10)
    whole = pg.generalised_advantages(rewards, values=values, mask=MASK, gamma=0.9, lam=0.8)
    alone = pg.generalised_advantages(
        rewards[1:2, :2], values=values[1:2, :2], mask=MASK[1:2, :2], gamma=0.9, lam=0.8
    )
    torch.testing.assert_close(whole.advantages[1:2, :2], alone.advantages)
    garbage = torch.where(MASK == 0, torch.tensor(99.0), values)
    again = pg.generalised_advantages(rewards, values=garbage, mask=MASK, gamma=0.9, lam=0.8)
    torch.testing.assert_close(again.advantages, whole.advantages)
    assert bool((again.advantages[MASK == 0] == 0).all())


def test_whitened_values_have_mean_0_and_deviation_1_over_the_tokens() -> None:
    found = pg.whitened(3 + 5 * drawn(11), MASK)
    tokens = found[MASK == 1]
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-6)
    assert float(tokens.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert bool((found[MASK == 0] == 0).all())
    torch.testing.assert_close(found, pg.whitened(drawn(11), MASK))  # neither shift nor scale matter
    assert pg.whitened(torch.full(MASK.shape, 7.0), MASK).abs().max() < 1e-3


def policy_loss(logps: Tensor, advantages: Tensor, old: Tensor | None = None) -> pg.PolicyLoss:
    return pg.clipped_policy_loss(
        logps,
        old_logps=logps.detach() if old is None else old,
        advantages=advantages,
        mask=MASK,
        clip=0.2,
        tokens=TOKENS,
    )


def test_before_the_policy_moved_the_gradient_is_that_of_reinforce() -> None:
    logps, advantages = drawn(12).requires_grad_(), drawn(13)
    found = policy_loss(logps, advantages)
    (gradient,) = torch.autograd.grad(found.loss, logps)
    (reinforce,) = torch.autograd.grad(-(logps * advantages * MASK).sum() / TOKENS, logps)
    torch.testing.assert_close(gradient, reinforce)
    assert found.approx_kl.item() == 0
    assert float(found.clip_fraction) == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "learns"),
    [
        (1.5, 1.0, -1.2, False),  # better already, and far enough
        (1.5, -1.0, 1.5, True),  # worse, and more likely than it was: back
        (0.5, 1.0, -0.5, True),
        (0.5, -1.0, 0.8, False),
        (1.1, 1.0, -1.1, True),
        (0.9, -1.0, 0.9, True),
    ],
)
def test_a_token_outside_the_clip_teaches_only_the_way_back(
    ratio: float, advantage: float, loss: float, learns: bool
) -> None:
    logps = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = pg.clipped_policy_loss(
        logps,
        old_logps=torch.zeros(1, 1),
        advantages=torch.tensor([[advantage]]),
        mask=torch.ones(1, 1),
        clip=0.2,
        tokens=1.0,
    )
    (gradient,) = torch.autograd.grad(found.loss, logps)
    assert found.loss.item() == pytest.approx(loss)
    assert bool(gradient != 0) is learns
    assert float(found.clip_fraction) == float(not learns)
    assert found.approx_kl.item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)


def test_batches_of_an_update_add_up_to_the_update() -> None:
    logps, old, advantages = drawn(14), drawn(15), drawn(16)
    whole = policy_loss(logps, advantages, old)
    rows = [
        pg.clipped_policy_loss(
            logps[row],
            old_logps=old[row],
            advantages=advantages[row],
            mask=MASK[row],
            clip=0.2,
            tokens=TOKENS,
        )
        for row in (slice(0, 1), slice(1, 3))
    ]
    for name in ("loss", "approx_kl", "clip_fraction"):
        torch.testing.assert_close(sum(getattr(row, name) for row in rows), getattr(whole, name))


def value_loss(value: float, *, old: float, target: float) -> list[float]:
    values = torch.tensor([[value]], requires_grad=True)
    loss = pg.clipped_value_loss(
        values,
        old_values=torch.tensor([[old]]),
        returns=torch.tensor([[target]]),
        mask=torch.ones(1, 1),
        clip=0.2,
        tokens=1.0,
    )
    (gradient,) = torch.autograd.grad(loss, values)
    return [loss.item(), gradient.item()]


def test_a_value_gains_nothing_by_leaving_the_clip() -> None:
    assert value_loss(1.1, old=1.0, target=2.0) == pytest.approx([0.405, -0.9])
    assert value_loss(1.5, old=1.0, target=2.0) == pytest.approx([0.32, 0.0])  # (1.2 - 2)^2 / 2
    assert value_loss(0.5, old=1.0, target=2.0) == pytest.approx([1.125, -1.5])


def test_entropy_is_that_of_the_distribution() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    assert pg.entropy(logits).tolist() == [pytest.approx(math.log(4)), pytest.approx(0.0, abs=1e-6)]
    logits = torch.randn(3, 5, 7)
    expected = torch.distributions.Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(pg.entropy(logits), expected)


def test_foresight_explains_all_variance_and_a_constant_none() -> None:
    returns = drawn(17)
    assert pg.explained_variance(returns + 3 * MASK, returns=returns, mask=MASK) == pytest.approx(1.0)
    assert pg.explained_variance(7 * MASK, returns=returns, mask=MASK) == pytest.approx(0.0, abs=1e-6)
    assert pg.explained_variance(-returns, returns=returns, mask=MASK) == pytest.approx(-3.0)
    assert pg.explained_variance(returns, returns=2 * MASK, mask=MASK) == 0.0


def after(kl: float, *, target: float = 6.0, completions: int = 100) -> float:
    return pg.next_kl_coefficient(0.2, kl=kl, target=target, horizon=1000, completions=completions)


def test_the_kl_coefficient_moves_towards_the_target_and_rests_on_it() -> None:
    assert after(6.0) == 0.2
    assert after(6.6) == pytest.approx(0.2 * 1.01)  # 10 % above, a tenth of the horizon
    assert after(5.4) == pytest.approx(0.2 * 0.99)
    assert after(600.0) == after(60.0) == pytest.approx(0.2 * 1.02)  # at most 20 %
    assert after(-3.0) == pytest.approx(0.2 * 0.98)
    assert after(600.0, target=0.0) == 0.2  # fixed


def test_the_running_scale_is_the_deviation_of_all_scores_however_they_came() -> None:
    scores = 100 + 4 * torch.randn(50, generator=torch.Generator().manual_seed(18))
    scale = RunningScale()
    for part in torch.tensor_split(scores, [7, 8, 38]):
        scale = scale.after(part)
    assert scale.divisor == pytest.approx(float(scores.std(correction=0)), rel=1e-5)
    assert scale.mean == pytest.approx(float(scores.mean()), rel=1e-6)
    assert scale.count == 50


def test_scores_that_are_all_the_same_are_not_scaled() -> None:
    assert RunningScale().divisor == 1.0
    assert RunningScale().after(torch.full((5,), 3.0)).divisor == 1.0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_after_the_warmup_the_rate_is_that_of_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = get_scheduler(
        schedule if schedule != "constant" else "constant_with_warmup",
        optimizer, num_warmup_steps=2, num_training_steps=20,
    )  # fmt: skip
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    ours = [
        pg.learning_rate(update, updates=20, peak=0.5, warmup_ratio=0.1, schedule=schedule)
        for update in range(20)
    ]
    assert ours[2:] == pytest.approx(rates[2:])
    assert 0 < ours[0] < ours[1] < 0.5


@pytest.mark.parametrize("at_once", [1, 2**22], ids=["row-by-row", "at-once"])
def test_log_probabilities_and_their_gradient_are_those_of_torch(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_logps, "_AT_ONCE", at_once)
    draw = torch.Generator().manual_seed(19)
    logits = (3 * torch.randn(3, 4, 11, generator=draw)).requires_grad_()
    targets = torch.randint(0, 11, (3, 4), generator=draw)
    weights = torch.randn(3, 4, generator=draw)
    ours = token_logps.chosen_logps(logits, targets, temperature=0.7)
    theirs = (logits / 0.7).log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), logits)[0],
        torch.autograd.grad((theirs * weights).sum(), logits)[0],
    )
    torch.testing.assert_close(token_logps.token_entropies(logits, temperature=0.7), pg.entropy(logits / 0.7))


def test_the_gradient_of_logits_in_bf16_is_computed_in_fp32() -> None:
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(20)).bfloat16().requires_grad_()
    targets = torch.zeros(2, 3, dtype=torch.long)
    found = token_logps.chosen_logps(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits.float().log_softmax(dim=-1)[..., 0])
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.dtype == torch.bfloat16
    assert gradient.float().sum(dim=-1).abs().max() < 0.01
