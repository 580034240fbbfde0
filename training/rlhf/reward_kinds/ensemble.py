"""Several reward models as one reward: an ensemble that doubts itself, and helpfulness with safety.

One reward model can be exploited where it errs; several that were trained apart rarely err alike, and where
they disagree the reward is to be believed less (Coste et al., 2310.02743). The arithmetic is pure (tensors
in, tensors out); `Ensemble` loads the models and reads conversations with them.

Models that learnt from comparisons know differences only: their zeros and spreads are arbitrary, and a
minimum over them would be whoever happens to lie lowest. So each is standardised by its own scores of the
same reference texts (`Ensemble.standardise_on`) before they are combined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import loading, rendering, scoring
from training.rlhf.failures import Refused

Combination = Literal["mean", "min", "penalised"]
COMBINATIONS: tuple[Combination, ...] = ("mean", "min", "penalised")
SAFETY_THRESHOLD = 0.15  # Llama 2, 2307.09288, section 3.2.3: below, a completion is taken to be unsafe


class Combined(NamedTuple):
    """Shapes (items,)."""

    rewards: Tensor
    disagreement: Tensor  # standard deviation over the models; 0 for one model


def standardised(scores: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Scores (models, items) in each model's own standard deviations; `mean` and `std` are (models,).

    A model that says the same of everything (std 0) has no opinion: 0 where it says it again.
    """
    return (scores - mean[:, None]) / std.where(std > 0, 1.0)[:, None]


def combined(scores: Tensor, *, how: Combination, k: float = 1.0) -> Combined:
    """One reward for each item from the scores of several models, (models, items).

    mean: no doubt. min: the model that likes it least (worst-case optimisation in 2310.02743). penalised:
    mean - k * standard deviation, as their uncertainty-weighted optimisation, but by the deviation and not
    its square, so that `k` has no unit and rewards may be scaled.
    """
    disagreement = scores.std(dim=0, correction=0)
    rewards = {
        "mean": scores.mean(dim=0),
        "min": scores.min(dim=0).values,
        "penalised": scores.mean(dim=0) - k * disagreement,
    }[how]
    return Combined(rewards, disagreement)


def safe_or_helpful(
    helpfulness: Tensor,
    safety: Tensor,
    *,
    is_safety_prompt: Tensor | None = None,
    threshold: float = SAFETY_THRESHOLD,
) -> Tensor:
    """Whose score counts: safety's for a prompt that is about safety or a completion that it finds unsafe.

    Llama 2, 2307.09288, section 3.2.3, R_c. Scores are what the models give, log-odds, and so is the result
    (their LOGIT of the probability); the threshold is a probability. All shapes (items,).
    """
    unsafe = torch.sigmoid(safety) < threshold
    if is_safety_prompt is not None:
        unsafe = unsafe | is_safety_prompt
    return torch.where(unsafe, safety, helpfulness)


def whitened(values: Tensor, *, mean: float | None = None, std: float | None = None) -> Tensor:
    """Values of mean 0 and standard deviation 1 (2307.09288, section 3.2.3, WHITEN), shape (items,).

    By their own mean and deviation, or by given ones, which do not change from batch to batch.
    """
    middle = values.mean() if mean is None else torch.tensor(mean)
    spread = values.std(correction=0) if std is None else torch.tensor(std)
    return (values - middle) / spread.where(spread > 0, 1.0)


@dataclass
class Ensemble:
    """Reward models and what each scores on average; they are read one after the other."""

    models: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    mean: Tensor  # (models,)
    std: Tensor

    @classmethod
    def load(cls, folders: Sequence[str | Path], *, dtype: torch.dtype = torch.float32) -> Self:
        """Load them all onto the device. Raises Refused for none, and what load_reward_model raises."""
        if not folders:
            raise Refused("An ensemble needs reward models.", "rewards", "Name one folder or more.")
        models = [loading.load_reward_model(folder, dtype=dtype) for folder in folders]
        for model, _ in models:
            loading.use_device(model)
        return cls(models, torch.zeros(len(models)), torch.ones(len(models)))

    def standardise_on(self, conversations: Sequence[rendering.Messages], *, batch_size: int = 32) -> None:
        """From now on scores are in standard deviations over these texts, for example held-out completions.

        Raises Refused for fewer than two texts.
        """
        if len(conversations) < 2:
            raise Refused("One text has no spread.", "rewards", "Give two reference texts or more.")
        scores = self._raw(conversations, batch_size=batch_size)
        self.mean, self.std = scores.mean(dim=1), scores.std(dim=1, correction=0)

    def scores(self, conversations: Sequence[rendering.Messages], *, batch_size: int = 32) -> Tensor:
        """(models, items), float32 on the CPU. Raises Cancelled between two batches when told to stop."""
        return standardised(self._raw(conversations, batch_size=batch_size), mean=self.mean, std=self.std)

    def rewards(
        self,
        conversations: Sequence[rendering.Messages],
        *,
        how: Combination = "mean",
        k: float = 1.0,
        batch_size: int = 32,
    ) -> Combined:
        return combined(self.scores(conversations, batch_size=batch_size), how=how, k=k)

    def _raw(self, conversations: Sequence[rendering.Messages], *, batch_size: int) -> Tensor:
        return torch.tensor(
            [
                scoring.reward_scores(model, tokenizer, conversations, batch_size=batch_size)
                for model, tokenizer in self.models
            ]
        ).reshape(len(self.models), len(conversations))
