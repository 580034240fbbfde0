"""Which figure of held-out rows says how good a run is, and which way is up. Standard library only.

Early stopping watches it, and a sweep compares runs by it. Names are those of progress.jsonl.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from training.rlhf.config import RunConfig
from training.rlhf.method_settings import RewardFunction
from training.rlhf.methods import METHODS

JUDGE = "held-out judge"  # the name of the evaluation's reward model among the rewards that are only watched


@dataclass(frozen=True)
class HeldOutFigure:
    name: str
    higher_is_better: bool


LOSS = HeldOutFigure("eval_loss", higher_is_better=False)
REWARD = HeldOutFigure("eval_reward", higher_is_better=True)
# The first that a run reports counts: a reward model of ratings alone has no accuracy.
WATCHED: dict[str, tuple[HeldOutFigure, ...]] = {
    "reward_model": (HeldOutFigure("eval_accuracy", higher_is_better=True), LOSS),
    "dpo": (HeldOutFigure("eval_rewards/accuracies", higher_is_better=True), LOSS),
    "kto": (LOSS,),
    "sft": (LOSS,),
    "pretraining": (LOSS,),
    "distillation": (LOSS,),
    "ppo": (REWARD,),
    "rloo": (REWARD,),
    "grpo": (REWARD,),
}


def can_stop_early(method: str) -> bool:
    """Rejection sampling imitates its own best completions: it has no held-out figure while it learns."""
    return method in WATCHED


def judge_of(config: RunConfig) -> RewardFunction | None:
    """The evaluation's reward model as a reward that is watched, where it is not learnt from.

    A policy that is rewarded by one model is judged by another one: when the reward that it learns from goes
    on rising while that of the judge falls, the former is being tricked (2210.10760).
    """
    if not config.training.evaluate_every or not METHODS[config.method].is_online or not config.reward_model:
        return None
    if any(one.weight and one.location == config.reward_model for one in config.rewards):
        return None
    return RewardFunction(name=JUDGE, kind="model", weight=0.0, location=config.reward_model)


def watched(config: RunConfig) -> tuple[HeldOutFigure, ...]:
    """The figures that a run may be judged by, the most telling one first."""
    if METHODS[config.method].is_online and any(one.name == JUDGE for one in config.rewards):
        return (HeldOutFigure(f"eval_rewards/{JUDGE}/mean", higher_is_better=True),)
    return WATCHED.get(config.method, ())


def found_in(config: RunConfig, values: Mapping[str, float]) -> tuple[HeldOutFigure, float] | None:
    """The first watched figure among reported values."""
    for figure in watched(config):
        if figure.name in values:
            return figure, values[figure.name]
    return None
