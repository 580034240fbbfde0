"""PURE: the arithmetic of policy gradients: rewards of tokens, advantages, losses, and what steers them.

Completions are padded on the right. Shapes are [completions, tokens] unless said otherwise; `mask` is 1.0 for
a completion's own tokens (the one that ended it among them) and 0.0 for padding. Logs are natural.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_SMALL = 1e-8


class PolicyLoss(NamedTuple):
    """Scalars: the loss, and how far the policy has moved since it drew the completions."""

    loss: Tensor
    approx_kl: Tensor  # nats a token
    clip_fraction: Tensor  # share of tokens whose ratio is clipped and so teach nothing


class Advantages(NamedTuple):
    advantages: Tensor
    returns: Tensor  # what the value model learns to foresee


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of all completions, a scalar: a long completion weighs more than a short one."""
    return (values * mask).sum() / mask.sum()


def shaped_rewards(
    scores: Tensor, *, logps: Tensor, reference_logps: Tensor, mask: Tensor, kl_coefficient: float
) -> Tensor:
    """A reward for each token: its share of the KL penalty, and at the last token the completion's score.

    Ziegler et al. (1909.08593), equation 1, token by token: R(x, y) = r(x, y) - b log(pi(y|x) / rho(y|x)).
    The penalty is the estimator k1 of Schulman's note on KL: the log ratio of what was drawn, which is right
    on average and may be negative. `scores` is [completions]. A completion has at least one token.
    """
    rewards = -kl_coefficient * (logps - reference_logps) * mask
    last = mask.sum(dim=1).long() - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None])


def generalised_advantages(
    rewards: Tensor, *, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> Advantages:
    """Schulman et al. (1506.02438), equations 11, 12 and 16: A_t = d_t + gamma lam A_(t+1), with
    d_t = r_t + gamma V(s_(t+1)) - V(s_t). The return is A_t + V(s_t), the target TD(lam).

    A completion ends at its last token: nothing follows, also where it was cut. `values[:, t]` is the value
    of the state before token t. Padding gets 0.
    """
    values = values * mask
    following = torch.zeros_like(values[:, 0])  # A_(t+1)
    found = torch.zeros_like(values)
    for place in reversed(range(values.shape[1])):
        next_value = values[:, place + 1] if place + 1 < values.shape[1] else torch.zeros_like(following)
        error = rewards[:, place] + gamma * next_value - values[:, place]
        following = (error + gamma * lam * following) * mask[:, place]
        found[:, place] = following
    return Advantages(found, found + values)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Shifted and scaled to mean 0 and standard deviation 1 over all tokens; padding gets 0.

    Engstrom et al. (2005.12729), section 3, count it among what makes PPO work. Values that are all the same
    become 0.
    """
    centred = (values - masked_mean(values, mask)) * mask
    deviation = masked_mean(centred**2, mask).sqrt()
    return centred / (deviation + _SMALL)


def clipped_policy_loss(
    logps: Tensor, *, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip: float, tokens: float
) -> PolicyLoss:
    """Schulman et al. (1707.06347), equation 7, negated: -min(r A, clip(r, 1 - e, 1 + e) A), over `tokens`.

    `tokens` are those of the whole update, so that the losses of its batches add up to the mean over all of
    them, however it is cut into batches; the two figures beside the loss add up alike. The KL is the
    estimator k3 of Schulman's note on KL: r - 1 - log r.
    """
    log_ratio = (logps - old_logps) * mask
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * advantages, bounded * advantages)
    with torch.no_grad():
        approx_kl = ((ratio - 1 - log_ratio) * mask).sum() / tokens
        is_clipped = (bounded * advantages < ratio * advantages).to(mask.dtype)
        clip_fraction = (is_clipped * mask).sum() / tokens
    return PolicyLoss(-(gain * mask).sum() / tokens, approx_kl, clip_fraction)


def clipped_value_loss(
    values: Tensor, *, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float, tokens: float
) -> Tensor:
    """Half the squared error of the values, which may not gain by leaving `clip` around the old ones.

    The larger of the clipped and the plain error counts: the value loss of OpenAI's baselines (2005.12729,
    section 3, equation 2). `tokens` as in `clipped_policy_loss`.
    """
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.maximum((values - returns) ** 2, (bounded - returns) ** 2)
    return 0.5 * (error * mask).sum() / tokens


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next token, in nats: of logits [..., vocabulary], a number for each distribution."""
    logps = logits.log_softmax(dim=-1)
    return -(logps.exp() * logps).sum(dim=-1)


def explained_variance(values: Tensor, *, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over all tokens: 1 is foresight, 0 what a constant would do.

    0 where the returns do not vary: there is nothing to explain.
    """
    variance = _variance(returns, mask)
    return 0.0 if variance < _SMALL else 1 - _variance(returns - values, mask) / variance


def _variance(values: Tensor, mask: Tensor) -> float:
    return float(masked_mean((values - masked_mean(values, mask)) ** 2, mask))


def next_kl_coefficient(
    coefficient: float, *, kl: float, target: float, horizon: float, completions: int
) -> float:
    """The KL coefficient after `completions` whose mean KL was `kl`: larger above the target, smaller below.

    Ziegler et al. (1909.08593), equation 2 and the one after it: e = clip((KL - target) / target, -0.2, 0.2)
    and b <- b (1 + K e). Their code takes K = completions / horizon, so that the size of a rollout does not
    change the pace. A target of 0 keeps the coefficient as it is.
    """
    if target == 0:
        return coefficient
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * completions / horizon)


@dataclass(frozen=True)
class RunningScale:
    """The standard deviation of all scores so far, by which the next are divided (Welford 1962, as merged
    by Chan et al. 1979).

    Scores are scaled and not shifted: a shift would change what a completion earns against the KL penalty,
    and the value model learns the mean anyway (2005.12729, section 3: reward scaling).
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def after(self, scores: Tensor) -> "RunningScale":
        """With these scores [completions] counted too."""
        count, mean = float(scores.numel()), float(scores.double().mean())
        squares = float(((scores.double() - mean) ** 2).sum())
        total, gap = self.count + count, mean - self.mean
        return RunningScale(
            count=total,
            mean=self.mean + gap * count / total,
            squares=self.squares + squares + gap**2 * self.count * count / total,
        )

    @property
    def divisor(self) -> float:
        """The standard deviation; 1 as long as all scores were the same."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 1e-6 else 1.0


def learning_rate(update: int, *, updates: int, peak: float, warmup_ratio: float, schedule: str) -> float:
    """The rate of one optimiser update of `updates`, counted from 0: a rise to the peak, then the schedule.

    As the schedules of transformers, but that the first update has a rate above 0.
    """
    warmup = math.ceil(warmup_ratio * updates)
    if update < warmup:
        return peak * (update + 1) / (warmup + 1)
    progress = (update - warmup) / max(1, updates - warmup)
    match schedule:
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak
