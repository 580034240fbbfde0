"""PURE: the loss of a completion that people found good, or bad (KTO, 2402.01306). Tensors in and out."""

import torch
from torch import Tensor


def kto_loss(log_ratio: Tensor, *, kl: Tensor, is_good: Tensor, beta: float) -> Tensor:
    """How far a completion is from being worth what people said (equation 7). Shape: (rows,).

    `log_ratio`: log-probability of a whole completion by the policy minus by the reference, in nats.
    `kl`: (), how far the policy is from the reference anyway, in nats: the point from which gains and losses
        are told. It is not learnt from.
    From 0 to 1 and 1/2 at that point; a good completion costs less above it, a bad one below.
    """
    gain = beta * (log_ratio.float() - kl)
    return 1 - torch.sigmoid(torch.where(is_good, gain, -gain))


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """KL of policy and reference from completions written to other prompts, a scalar, never below 0.

    Shape of `log_ratio`: (rows,). Biased, and cheap: nothing has to be drawn.
    """
    return log_ratio.float().mean().clamp(min=0)
