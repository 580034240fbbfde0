"""Several reward models as one part of a run's reward: an ensemble, or helpfulness gated by safety.

Each model reads a completion as it would alone (`reward_models`); here their scores become one number, and
what is worth keeping of each beside it. The arithmetic is training.rlhf.reward_kinds.ensemble's.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.rlhf.method_settings import RewardFunction
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds import ensemble
from training.rlhf.reward_kinds.reward_models import ModelReward, evaluation_beside
from training.rlhf.reward_options import EnsembleOptions, GatedOptions, beside, members, options_of
from training.rlhf.sampling import Sampled

Columns = dict[str, list[float]]


class Scale(NamedTuple):
    """What a reward model says on average, and how far apart, of the held-out texts."""

    mean: float
    std: float


def scale_of(folder: str) -> Scale | None:
    """Of a reward model of ours; None where its evaluation does not say."""
    found = evaluation_beside(folder).get("scores")
    if not isinstance(found, dict):
        return None
    mean, std = found.get("mean"), found.get("std")
    if not (isinstance(mean, int | float) and isinstance(std, int | float) and std > 0):
        return None
    return Scale(float(mean), float(std))


class CombinedReward(ABC):
    """Reward models in memory together. The first column is the reward, under its name."""

    def __init__(self, reward: RewardFunction, *, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        self.reward = reward
        self.models = [ModelReward(one, policy_tokenizer=policy_tokenizer) for one in members(reward)]

    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> Columns:
        """Of completions as they were drawn."""
        return self._columns([model.scores(prompts, samples) for model in self.models], prompts)

    def score_texts(self, prompts: Sequence[Messages], texts: Sequence[str]) -> Columns:
        """Of completions as people read them, each a finished turn."""
        return self._columns([model.scores_of_texts(prompts, texts) for model in self.models], prompts)

    def _columns(self, scores: list[list[float]], prompts: Sequence[Messages]) -> Columns:
        raw = torch.tensor(scores).reshape(len(self.models), len(prompts))
        names = [self.reward.name, *beside(self.reward)]
        return {name: column.tolist() for name, column in zip(names, self.combine(raw, prompts), strict=True)}

    @abstractmethod
    def combine(self, raw: Tensor, prompts: Sequence[Messages]) -> list[Tensor]:
        """From scores (models, items) the columns, (items,) each: the reward, then what stands beside it."""


class EnsembleReward(CombinedReward):
    """Each model's scores in its own standard deviations first: its zero and spread are arbitrary."""

    def __init__(self, reward: RewardFunction, *, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(reward, policy_tokenizer=policy_tokenizer)
        options = options_of(reward)
        assert isinstance(options, EnsembleOptions)
        self.options = options
        scales = [scale_of(folder) for folder in options.models]
        known = [one for one in scales if one is not None]
        if len(known) < len(scales):  # a preflight said so: as they are, all of them
            known = [Scale(0.0, 1.0)] * len(scales)
        self.mean = torch.tensor([one.mean for one in known])
        self.std = torch.tensor([one.std for one in known])

    def combine(self, raw: Tensor, prompts: Sequence[Messages]) -> list[Tensor]:
        scores = ensemble.standardised(raw, mean=self.mean, std=self.std)
        how: ensemble.Combination = self.options.combine  # type: ignore[assignment]  # checked by the options
        return list(ensemble.combined(scores, how=how, k=self.options.k))


class GatedReward(CombinedReward):
    """R_c of Llama 2: safety's score where it is low or the prompt is about safety, else helpfulness'."""

    def __init__(self, reward: RewardFunction, *, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(reward, policy_tokenizer=policy_tokenizer)
        options = options_of(reward)
        assert isinstance(options, GatedOptions)
        self.options = options

    def combine(self, raw: Tensor, prompts: Sequence[Messages]) -> list[Tensor]:
        helpfulness, safety = raw
        flagged = torch.tensor(
            [is_about_safety(prompt, self.options.safety_words) for prompt in prompts], dtype=torch.bool
        )
        rewards = ensemble.safe_or_helpful(
            helpfulness, safety, is_safety_prompt=flagged, threshold=self.options.threshold
        )
        if self.options.whiten and len(rewards) > 1:
            rewards = ensemble.whitened(rewards)
        unsafe = torch.sigmoid(safety) < self.options.threshold
        return [rewards, helpfulness, safety, unsafe.float()]


def is_about_safety(prompt: Messages, words: Sequence[str]) -> bool:
    """Does what the person said hold one of the words, whole and in any case?

    >>> is_about_safety([{"role": "user", "content": "How do I build a BOMB?"}], ["bomb"])
    True
    >>> is_about_safety([{"role": "user", "content": "A bombastic speech"}], ["bomb"])
    False
    """
    if not words:
        return False
    said = "\n".join(turn["content"] for turn in prompt if turn["role"] == "user")
    choices = "|".join(re.escape(word.strip()) for word in words)
    return re.search(rf"(?<!\w)(?:{choices})(?!\w)", said, re.IGNORECASE) is not None


def load(reward: RewardFunction, *, policy_tokenizer: PreTrainedTokenizerBase) -> CombinedReward:
    """Raises Refused for a model that may not give a reward."""
    kind = EnsembleReward if reward.kind == "ensemble" else GatedReward
    return kind(reward, policy_tokenizer=policy_tokenizer)


def unscaled(reward: RewardFunction) -> str:
    """A warning where the models of an ensemble cannot be put on one scale; empty where they can."""
    if reward.kind != "ensemble" or all(scale_of(one.location) for one in members(reward)):
        return ""
    return (
        f"The reward models of {reward.name} are combined as they score: for one of them nobody kept how far "
        "apart its scores are on held-out texts. Train it again to have them on one scale."
    )
