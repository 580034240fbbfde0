"""PURE: how far two next-token distributions are apart. Tensors in, tensors out."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def generalised_jsd(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of each token in nats (2306.13649, equation 1): shape (tokens,).

    Both are logits of shape (tokens, vocabulary). With the mixture m = beta * teacher + (1 - beta) * student
    it is beta * KL(teacher || m) + (1 - beta) * KL(student || m). At 0 it is KL(teacher || student), which
    covers all that the teacher would say; at 1 KL(student || teacher), which keeps to what it finds likely.
    """
    ours, theirs = (F.log_softmax(logits.float(), dim=-1) for logits in (student, teacher))
    if beta == 0:
        return _kl(theirs, ours)
    if beta == 1:
        return _kl(ours, theirs)
    mixture = torch.logaddexp(ours + math.log(1 - beta), theirs + math.log(beta))
    return beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row of log-probabilities."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
