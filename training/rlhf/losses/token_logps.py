"""PURE: log-probabilities of tokens from logits, in the memory of the logits and their gradient alone.

For a large vocabulary the logits are the largest tensor of an update. log_softmax would keep two more in fp32
until the gradient is there; here each row of the batch becomes fp32 by itself, forward and backward.
"""

from typing import Any

import torch
from torch import Tensor

from training.rlhf.losses.policy_gradient import entropy

_AT_ONCE = 2**22  # numbers in fp32


def chosen_logps(logits: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) of each target: [rows, columns, vocabulary] and [rows, columns] give
    [rows, columns], in fp32 or wider."""
    found: Tensor = _ChosenLogps.apply(logits, targets, temperature)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def token_entropies(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropies in nats of softmax(logits / temperature), [rows, columns]; without a gradient."""
    return torch.cat([entropy(_wide(part) / temperature) for part in _parts(logits)])


def _rows(logits: Tensor) -> int:
    return max(1, _AT_ONCE // logits[0].numel())


def _parts(logits: Tensor) -> list[Tensor]:
    size = _rows(logits)
    return [logits[start : start + size] for start in range(0, len(logits), size)]


def _wide(part: Tensor) -> Tensor:
    return part.to(torch.promote_types(part.dtype, torch.float32))


class _ChosenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        sums = torch.cat([(_wide(part) / temperature).logsumexp(dim=-1) for part in _parts(logits)])
        ctx.save_for_backward(logits, targets, sums)
        ctx.temperature = temperature
        return _wide(logits.gather(2, targets[..., None])[..., 0]) / temperature - sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of token v for target y: (1[v = y] - softmax_v) / temperature."""
        logits, targets, sums = ctx.saved_tensors
        scaled = gradients[0][..., None] / ctx.temperature
        found = torch.empty_like(logits)
        size = _rows(logits)
        for start in range(0, len(logits), size):
            part = slice(start, start + size)
            chances = (_wide(logits[part]) / ctx.temperature - sums[part, :, None]).exp_()
            chances.mul_(-scaled[part])
            chances.scatter_add_(2, targets[part, :, None], scaled[part])
            found[part] = chances
        return found, None, None
