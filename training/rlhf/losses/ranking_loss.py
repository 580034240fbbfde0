"""PURE: the loss of a whole ranking, Plackett-Luce. Tensors in, tensors out.

The best is chosen among all with probability softmax(scores), the next among what is left, and so on
(Plackett 1975, "The analysis of permutations"). That is the partial likelihood of Cox's regression, whose
treatment of ties is taken too: Efron's (1977, "The efficiency of Cox's likelihood function for censored
data"). Of m completions on a rank, the one that comes l-th (from 0) is chosen from what is left without l/m
of those on its rank. Breslow's, which leaves all of them in, is further from the mean over the orders that
the tie leaves open (tests/training_rlhf/test_ranking_loss.py).
"""

import torch
from torch import Tensor


def plackett_luce(scores: Tensor, ranks: Tensor, *, mask: Tensor) -> Tensor:
    """Negative log-likelihood of each ranking; float32, shape (rankings,).

    Shapes (rankings, completions): `scores`, `ranks` (lowest is best, equal is a tie, gaps do not matter),
    and `mask`, False where a shorter ranking is padded. For two without a tie it is the loss of a sure
    comparison; for two that are tied it is least, log 2, where both scores are equal.
    """
    rank, other = ranks[:, :, None], ranks[:, None, :]
    there = mask[:, None, :]
    left = there & (other >= rank)  # what i was chosen from: [:, i, j]
    tied = there & (other == rank)
    places = torch.arange(ranks.shape[1], device=ranks.device)
    earlier = (tied & (places[None, :] < places[:, None])).sum(2)  # l
    share = earlier / tied.sum(2).clamp(min=1)  # l/m, below 1
    kept = left.float() - share[:, :, None] * tied.float()
    kept = torch.where(mask[:, :, None], kept, torch.eye(len(places), device=ranks.device))  # no empty sum
    values = scores.float()[:, None, :].expand_as(kept).masked_fill(kept == 0, -torch.inf)
    chosen_from = torch.logsumexp(values + kept.clamp(min=1e-12).log(), dim=2)
    return ((chosen_from - scores.float()) * mask).sum(1)
