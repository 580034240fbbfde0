"""How a reward model's one score relates to people's ratings: learnt beside it, not needed to score.

Ordinal: ordered cut points on the score. Regression: mean and standard deviation of the ratings, fixed.
Either says which rating to expect of a score, and whether a completion is acceptable. It is kept in
`rating_head.json` beside the weights, in checkpoints and in model/, never among them: a reward model stays a
sequence classifier that anybody can load.
"""

import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.rlhf.failures import Refused
from training.rlhf.losses.rating_loss import (
    ordered,
    ordinal_loss,
    ordinal_probabilities,
    regression_loss,
    starting_cut_points,
    unordered,
)
from training.rlhf.rows.rated import Rated, acceptable_from
from training.rlhf.run_dir import write_json

FILE = "rating_head.json"
MOST_RATINGS = 101  # of an ordinal scale; 0 to 100 is the longest in use


class RatingHead(nn.Module, ABC):
    """`scale`: the ratings that there are, lowest first."""

    kind: str

    def __init__(self, scale: Sequence[float]) -> None:
        super().__init__()
        self.scale = [float(rating) for rating in scale]
        self.acceptable_from = float(acceptable_from(self.scale))

    @abstractmethod
    def loss(self, scores: Tensor, ratings: Tensor) -> Tensor:
        """Of each rating, float32; shapes (ratings,) both."""

    @abstractmethod
    def expected(self, scores: Tensor) -> Tensor:
        """The rating that is expected of each score, same shape."""

    @abstractmethod
    def finds_acceptable(self, scores: Tensor) -> Tensor:
        """Is a rating of `acceptable_from` or higher the more likely outcome? Bool, same shape."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "scale": self.scale, "acceptable_from": self.acceptable_from}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: hung onto a model, so that its optimiser finds it, it is no part of its weights."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, for the same reason."""


class OrdinalHead(RatingHead):
    kind = "ordinal"

    def __init__(self, scale: Sequence[float], *, first: Tensor, increments: Tensor) -> None:
        super().__init__(scale)
        # "bias" in a name keeps weight decay away from it (transformers' get_decay_parameter_names).
        self.bias = nn.Parameter(first)
        self.bias_increments = nn.Parameter(increments)

    @property
    def cut_points(self) -> Tensor:
        return ordered(self.bias, self.bias_increments)

    def loss(self, scores: Tensor, ratings: Tensor) -> Tensor:
        return ordinal_loss(scores, nearest(ratings, self.scale), cut_points=self.cut_points)

    @torch.no_grad()
    def expected(self, scores: Tensor) -> Tensor:
        probabilities = ordinal_probabilities(scores, cut_points=self.cut_points.to(scores))
        return probabilities @ torch.tensor(self.scale).to(scores)

    @torch.no_grad()
    def finds_acceptable(self, scores: Tensor) -> Tensor:
        place = self.scale.index(self.acceptable_from)
        return scores >= self.cut_points[place - 1] if place else torch.ones_like(scores, dtype=torch.bool)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {
            "cut_points": self.cut_points.tolist(),
            "first": self.bias.tolist(),  # with the next, exactly what is trained: training goes on from it
            "increments": self.bias_increments.tolist(),
        }


class RegressionHead(RatingHead):
    kind = "regression"

    def __init__(self, scale: Sequence[float], *, mean: float, std: float) -> None:
        super().__init__(scale)
        self.mean, self.std = mean, std

    def loss(self, scores: Tensor, ratings: Tensor) -> Tensor:
        return regression_loss(scores, ratings, mean=self.mean, std=self.std)

    def expected(self, scores: Tensor) -> Tensor:
        return (self.mean + self.std * scores).clamp(self.scale[0], self.scale[-1])

    def finds_acceptable(self, scores: Tensor) -> Tensor:
        return self.mean + self.std * scores >= self.acceptable_from

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"mean": self.mean, "std": self.std}


def nearest(ratings: Tensor, scale: Sequence[float]) -> Tensor:
    """The number of the nearest rating of the scale, from 0: held-out ratings may be others than seen."""
    return (ratings[:, None] - torch.tensor(scale, device=ratings.device)).abs().argmin(1)


def start(kind: str, rated: Sequence[Rated], *, scale: Sequence[float], model: str) -> RatingHead:
    """A head fit to these ratings before training, or that of `model` where it has one for the same scale.

    Raises Refused when an ordinal scale is too long to learn.
    """
    known = load(model)
    if known is not None and known.kind == kind and known.scale == list(scale):
        return known
    ratings = torch.tensor([rating for one in rated for rating in one.ratings])
    if kind == "regression":
        std = statistics.pstdev(ratings.tolist()) or 1.0
        return RegressionHead(scale, mean=statistics.fmean(ratings.tolist()), std=std)
    if len(scale) > MOST_RATINGS:
        raise Refused(
            f"There are {len(scale)} different ratings; an ordinal scale has at most {MOST_RATINGS}.",
            "reward_learning.rating_loss",
            "Choose regression.",
        )
    counts = torch.bincount(nearest(ratings, scale), minlength=len(scale))
    first, increments = unordered(starting_cut_points(counts))
    return OrdinalHead(scale, first=first, increments=increments)


def save(head: RatingHead, folder: Path) -> None:
    """Write rating_head.json: numbers in JSON come back to the last bit."""
    write_json(folder / FILE, head.to_json())


def load(folder: str | Path) -> RatingHead | None:
    """The head of a saved reward model; None where it never learnt from ratings. Raises Refused."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] == "regression":
            return RegressionHead(found["scale"], mean=float(found["mean"]), std=float(found["std"]))
        first, increments = torch.tensor(found["first"]), torch.tensor(found["increments"])
        if len(first) + len(increments) != len(found["scale"]) - 1:
            raise ValueError("a scale of K ratings has K - 1 cut points")
        return OrdinalHead(found["scale"], first=first, increments=increments)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Refused(
            f"This is not what a rating head was saved as: {error}.", str(path), "Remove the file."
        ) from error
