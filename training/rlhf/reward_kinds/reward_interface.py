"""What an online method asks of its reward: numbers for completions as they were drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from training.rlhf.rendering import Messages
from training.rlhf.sampling import Sampled


@dataclass(frozen=True)
class RewardBatch:
    """`total` is the weighted sum for each completion; `parts` each named function, unweighted."""

    total: list[float]
    parts: dict[str, list[float]]


class Rewards(Protocol):
    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
        """Numbers for each sample, written after the prompt of the same place, in order."""
        ...
