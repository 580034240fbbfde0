"""PURE: the loss of one rating of one completion. Tensors in, tensors out.

Ordinal: the proportional-odds model with cumulative links (McCullagh 1980, "Regression models for ordinal
data", section 2). The one score s of a completion meets K - 1 ordered cut points c, and rating number k (from
0) has the probability

    P(rating = k) = sigmoid(c[k] - s) - sigmoid(c[k - 1] - s),   c[-1] = -inf, c[K - 1] = inf

so a difference of scores is a log-odds, as in the loss of a comparison. Regression: the squared error of the
score as the standardised rating (as in HelpSteer2, 2406.08673, with one attribute).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def ordered(first: Tensor, increments: Tensor) -> Tensor:
    """Cut points [K - 1] that stay in order whatever an optimiser does: the first, then softplus steps.

    Shapes: `first` [1], `increments` [K - 2], any real numbers.
    """
    return torch.cat([first, first + F.softplus(increments).cumsum(0)])


def unordered(cut_points: Tensor) -> tuple[Tensor, Tensor]:
    """What `ordered` makes these cut points of. They have to rise strictly."""
    steps = cut_points.diff()
    return cut_points[:1].clone(), steps + torch.log(-torch.expm1(-steps))


def starting_cut_points(counts: Tensor) -> Tensor:
    """Cut points [K - 1] at which a score of 0 means the ratings' own frequencies; `counts` is [K].

    Half a rating is added to each, so that one that nobody gave yet still has its place.
    """
    cumulative = (counts.double() + 0.5).cumsum(0)
    return (cumulative[:-1] / cumulative[-1]).logit().float()


def ordinal_loss(scores: Tensor, categories: Tensor, *, cut_points: Tensor) -> Tensor:
    """Negative log-likelihood of each rating; float32. Shapes: (ratings,), (ratings,) of 0..K - 1, (K - 1,).

    By sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which keeps its digits where both
    sides of the difference round to the same number.
    """
    edge = cut_points.new_full((1,), torch.inf)
    bounds = torch.cat([-edge, cut_points, edge]).float()  # (K + 1,)
    below = bounds[categories] - scores.float()
    above = bounds[categories + 1] - scores.float()
    width = bounds.diff()[categories]  # without the score, beside which it may be too small to be seen
    inside = torch.log(-torch.expm1(-width))
    return -(F.logsigmoid(above) + F.logsigmoid(-below) + inside)


def ordinal_probabilities(scores: Tensor, *, cut_points: Tensor) -> Tensor:
    """The probability of each rating, (completions, K), from scores (completions,)."""
    at_most = torch.sigmoid(cut_points[None, :] - scores[:, None])
    ends = at_most.new_zeros(len(scores), 1)
    return torch.cat([ends, at_most, ends + 1], dim=1).diff(dim=1)


def regression_loss(scores: Tensor, ratings: Tensor, *, mean: float, std: float) -> Tensor:
    """Squared error of each score as the standardised rating; float32. Shapes: (ratings,) both."""
    return (scores.float() - (ratings - mean) / std) ** 2
