"""What the runs of a sweep are compared by: a held-out figure of their evaluations, and which way is up."""

from dataclasses import dataclass
from typing import Any

from training.models import Run
from training.results import number_in
from training.rlhf.methods import METHODS


@dataclass(frozen=True)
class Objective:
    key: str
    label: str
    higher_is_better: bool
    path: tuple[str, ...]  # into a run's evaluation
    low: tuple[str, ...] = ()
    high: tuple[str, ...] = ()
    needs_reward_model: bool = False
    note: str = ""


@dataclass(frozen=True)
class Measured:
    value: float
    low: float | None = None
    high: float | None = None


LOSS = Objective("loss", "held-out loss", False, ("held_out", "eval_loss"))
PREFERENCE_LOSS = Objective(
    "loss", "held-out loss", False, ("held_out", "eval_loss"),
    note="Losses of different beta, margin or kind of loss cannot be compared.",
)  # fmt: skip
ACCURACY = Objective("accuracy", "held-out accuracy", True, ("accuracy",), ("low",), ("high",))
ORDER = Objective("spearman", "rank correlation with held-out ratings", True, ("ratings", "spearman"))
MARGINS = Objective("accuracy", "held-out accuracy", True, ("held_out", "eval_rewards/accuracies"))
WIN_RATE = Objective(
    "win_rate", "win rate by the reward model", True,
    ("win_rate_reward_model",), ("win_rate_low",), ("win_rate_high",), needs_reward_model=True,
)  # fmt: skip
REWARD = Objective("reward", "held-out reward by the reward model", True, ("reward_new",),
                   needs_reward_model=True)  # fmt: skip
OWN_REWARD = Objective("own_reward", "held-out reward, as learnt from", True, ("held_out", "eval_reward"))
BEST = Objective(
    "best", "best evaluation of early stopping", True, ("early_stopping", "best"),
    note="Of the figure that early stopping watches: give the runs steps between evaluations.",
)  # fmt: skip
BY_METHOD: dict[str, tuple[Objective, ...]] = {
    "reward_model": (ACCURACY, ORDER, LOSS),
    "dpo": (WIN_RATE, REWARD, MARGINS, PREFERENCE_LOSS),
    "kto": (WIN_RATE, REWARD, PREFERENCE_LOSS),
    "ppo": (WIN_RATE, REWARD, BEST),
    "rloo": (WIN_RATE, REWARD, OWN_REWARD),
    "grpo": (WIN_RATE, REWARD, OWN_REWARD),
    "rejection_sampling": (WIN_RATE, REWARD),
}
OF_EXAMPLES = (LOSS, WIN_RATE, REWARD)


def objectives_of(method: str) -> tuple[Objective, ...]:
    return BY_METHOD.get(method, OF_EXAMPLES if METHODS[method].makes == "policy" else ())


def objective_of(method: str, key: str) -> Objective | None:
    return next((one for one in objectives_of(method) if one.key == key), None)


def measured(run: Run | None, objective: Objective) -> Measured | None:
    """What a complete run came to; None for one that is not, or whose evaluation lacks the figure."""
    if run is None or run.state != Run.State.COMPLETE:
        return None
    evaluation: dict[str, Any] = run.evaluation
    value = number_in(evaluation, *objective.path)
    if value is None:
        return None
    bounds = [number_in(evaluation, *path) if path else None for path in (objective.low, objective.high)]
    return Measured(value, *bounds)
