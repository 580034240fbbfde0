"""PURE: the loss of one comparison, for the reward model and for DPO alike. Tensors in, tensors out.

Both methods are logistic regressions on a difference. For the reward model it is the difference of two scores
(InstructGPT, 2203.02155, equation 1); for DPO that of two implicit rewards (2305.18290, equation 7). DPO's
relatives read the same difference, margin and label in other ways: hinge (SLiC, 2305.10425, in the form of
2309.06657), robust (2403.00409) and IPO (2310.12036). In all of them the margin is taken off the difference,
and a label of p is a mean of both labels: p of the people say one thing and 1 - p the opposite.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def comparison_loss(difference: Tensor, *, margin: Tensor, p: Tensor) -> Tensor:
    """How badly a difference explains what people said. All shapes (comparisons,); returns float32.

    `difference`: reward of the chosen completion minus reward of the rejected one.
    `margin`: by how much the difference has to be larger, because people preferred strongly
        (Llama 2, 2307.09288, equation 2; DPO with an offset, 2402.10571, equation 5).
    `p`: the probability with which people prefer the chosen one. At 1 the loss is
        -log sigmoid(difference - margin); a tie is 0.5 and pulls the difference towards the margin, 0 then.
    """
    return F.binary_cross_entropy_with_logits(difference.float() - margin, p, reduction="none")


def hinge_loss(difference: Tensor, *, margin: Tensor, p: Tensor) -> Tensor:
    """0 once the difference exceeds the margin by 1. Shapes: as `comparison_loss`.

    The mean of both labels' losses, at their probabilities; a tie asks for nothing between -1 and 1.
    """
    beyond = difference.float() - margin
    return p * torch.relu(1 - beyond) + (1 - p) * torch.relu(1 + beyond)


def robust_loss(difference: Tensor, *, margin: Tensor, p: Tensor, flipped: float) -> Tensor:
    """What `comparison_loss` would be if no label were wrong, on average (2403.00409). Shapes: as there.

    `flipped`: the share of labels that are taken to be wrong, from 0 to below 1/2; at 0 it is the same loss.
    ((1 - e) L(d) - e L(-d)) / (1 - 2 e) is a logistic loss whose label is (p - e) / (1 - 2 e), above 1 for
    what is sure. It has no lower bound there: a pair costs less the surer the policy is. A tie stays a tie.
    """
    return comparison_loss(difference, margin=margin, p=(p - flipped) / (1 - 2 * flipped))


def ipo_loss(difference: Tensor, *, margin: Tensor, p: Tensor, beta: float) -> Tensor:
    """Squared distance of the log-ratios' difference from its target (2310.12036, equation 17).

    `difference`, `margin`: for a mean token, not for the whole completion as in the other losses (so in TRL,
        and as the paper's authors told it). The difference is beta h, h that of the log-ratios.
    The target of h is (2 p - 1) / (2 beta) + margin / beta: 1 / (2 beta) where people are sure, 0 for a tie,
    -1 / (2 beta) where they are sure of the opposite; the mean of both labels' losses, up to a constant.
    """
    return ((difference.float() - margin - (p - 0.5)) / beta) ** 2


def mean_over_elements(losses: Tensor, *, weight: Tensor, elements: float) -> Tensor:
    """The loss of a batch, a scalar. Shapes of `losses` and `weight`: (comparisons,).

    A batch counts its elements, not its comparisons: a ranking of K is one element with C(K, 2) comparisons
    whose weights add up to 1, so that long rankings do not drown pairs (InstructGPT, section 3.5).
    """
    return (losses * weight).sum() / elements


def implicit_rewards(logps: Tensor, *, reference_logps: Tensor, beta: float) -> Tensor:
    """DPO's reward of completions, up to a term of the prompt alone (2305.18290, equation 5). Shape: any."""
    return beta * (logps - reference_logps)


def negative_log_likelihood(token_logps: Tensor, *, mask: Tensor, weight: Tensor) -> Tensor:
    """The SFT term of a batch, a scalar; 0 when `mask` holds nowhere. Shapes: (rows, tokens) and (rows,).

    A mean over the tokens where `mask` holds, as in TRL; `weight` is that of the row in its comparison, so
    that the C(K, 2) pairs of a ranking are imitated no more than one pair.
    """
    return -(token_logps * mask * weight[:, None]).sum() / mask.sum().clamp(min=1)


def share_above(differences: Tensor, *, p: Tensor) -> Tensor:
    """Accuracy: of the comparisons that people decided, the share with a positive difference; nan if none."""
    decided = p > 0.5
    return ((differences > 0) & decided).sum() / decided.sum()
