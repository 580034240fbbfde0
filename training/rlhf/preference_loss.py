"""PURE: the loss of one comparison, for the reward model and for DPO alike. Tensors in, tensors out.

Both methods are logistic regressions on a difference. For the reward model it is the difference of two scores
(InstructGPT, 2203.02155, equation 1); for DPO that of two implicit rewards (2305.18290, equation 7).
"""

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
