"""The settings that belong to one method each: sections of a recipe. Standard library only.

What all methods share (rate, batch, length) is in training.rlhf.config.Training, what is trained of
a model in Tuning, and how a policy writes in Sampling; online methods draw their completions by the latter.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


class ConfigError(ValueError):
    """A recipe that cannot be run; the message says which setting, and what it may be."""


def check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    check(value in choices, f"{name} is {value!r}: one of {', '.join(choices)}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    check(low <= value <= high, f"{name} is {value}: from {low:,g} to {high:,g}")


RANKING_LOSSES = ("pairs", "plackett_luce")
RATING_LOSSES = ("ordinal", "regression")
DPO_LOSSES = ("sigmoid", "ipo", "hinge", "robust")
GRPO_LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo")


@dataclass(frozen=True, kw_only=True)
class RewardLearning:
    """How a reward model reads labels."""

    use_margin: bool = True  # subtract the strength margin inside the sigmoid
    ranking_loss: Literal["pairs", "plackett_luce"] = "pairs"
    rating_loss: Literal["ordinal", "regression"] = "ordinal"
    rating_weight: float = 1.0  # of a rating beside a comparison's 1; 0 leaves ratings out
    criteria: dict[str, float] = field(
        default_factory=dict
    )  # of ratings; empty: the overall one, or all alike
    one_head_each: bool = (
        True  # a score for each criterion, whose weighted sum is the reward; else one of all
    )

    def __post_init__(self) -> None:
        check_choice("reward_learning.ranking_loss", self.ranking_loss, RANKING_LOSSES)
        check_choice("reward_learning.rating_loss", self.rating_loss, RATING_LOSSES)
        check_range("reward_learning.rating_weight", self.rating_weight, 0, 100)
        _check_criteria(self.criteria, negative=self.one_head_each)

    @property
    def heads(self) -> dict[str, float]:
        """The criteria that have a head of their own, by name, with their weights."""
        return self.criteria if self.one_head_each else {}


def _check_criteria(criteria: dict[str, float], *, negative: bool) -> None:
    where = "reward_learning.criteria"
    check(len(criteria) <= 16, f"{where}: at most 16")
    names = [name.strip().lower() for name in criteria]
    check(all(0 < len(name) <= 60 for name in names), f"{where}: each has a name of 1 to 60 letters")
    check(len(set(names)) == len(names), f"{where}: each criterion once")
    for name, weight in criteria.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        check(is_number and weight == weight, f"{where}: the weight of {name} is {weight!r}: a number")
        check(
            0 < abs(weight) <= 1000, f"{where}: the weight of {name} is {weight}: from -1,000 to 1,000, not 0"
        )
        check(negative or weight > 0, f"{where}: the weight of {name} is {weight}: above 0, where one score "
              "learns them all")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimisation (2305.18290) and its relatives."""

    beta: float = 0.1
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: float = 0.0  # robust: the share of labels taken to be wrong
    sft_weight: float = 0.0  # weight of a negative log-likelihood term on the chosen completion
    use_margin: bool = True

    def __post_init__(self) -> None:
        check(0 < self.beta <= 10, f"dpo.beta is {self.beta}: above 0, at most 10")
        check_choice("dpo.loss", self.loss, DPO_LOSSES)
        check(
            0 <= self.label_smoothing < 0.5,
            f"dpo.label_smoothing is {self.label_smoothing}: from 0 to below 0.5",
        )
        check(
            self.loss == "robust" or self.label_smoothing == 0,
            f"dpo.label_smoothing is {self.label_smoothing}: only the robust loss reads it",
        )
        check_range("dpo.sft_weight", self.sft_weight, 0, 10)


@dataclass(frozen=True, kw_only=True)
class Kto:
    """Kahneman-Tversky optimisation (2402.01306): single completions, good or bad."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    good_from: float = 4.0  # ratings from here up are desirable
    bad_to: float = 2.0  # ratings from here down are not; what lies between is left out

    def __post_init__(self) -> None:
        check(0 < self.beta <= 10, f"kto.beta is {self.beta}: above 0, at most 10")
        check_range("kto.desirable_weight", self.desirable_weight, 0, 100)
        check_range("kto.undesirable_weight", self.undesirable_weight, 0, 100)
        check(
            self.bad_to < self.good_from, f"kto.bad_to is {self.bad_to}: below good_from ({self.good_from})"
        )


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """Proximal policy optimisation (1707.06347) as in InstructGPT (2203.02155). KL in nats a completion."""

    rollout_size: int = 128  # completions drawn before the weights move
    epochs: int = 4  # over the completions of one rollout
    gamma: float = 1.0
    lam: float = 0.95  # of generalised advantage estimation (1506.02438)
    clip: float = 0.2  # of the ratio of probabilities
    value_clip: float = 0.2
    value_weight: float = 0.1
    entropy_weight: float = 0.0
    kl_coefficient: float = 0.05  # at the start
    kl_target: float = 6.0  # the coefficient adapts towards it (1909.08593, equation 2); 0 keeps it fixed
    kl_horizon: int = 10_000  # completions over which it adapts
    normalise_rewards: bool = True  # by the running standard deviation
    # Rewards in standard deviations need none; and once all completions earn alike it blows up what is noise:
    # in the toy benchmark's LoRA a rate of 0.98 fell to 0.02 within a step.
    whiten_advantages: bool = False
    missing_eos_penalty: float = 1.0  # subtracted from the reward of a completion that was cut
    # A run that leaves these bounds stops itself and keeps its last good checkpoint.
    most_kl: float = 50.0
    least_entropy: float = 0.01  # nats a token
    least_eos_rate: float = 0.0

    def __post_init__(self) -> None:
        check_range("ppo.rollout_size", self.rollout_size, 2, 65_536)
        check_range("ppo.epochs", self.epochs, 1, 64)
        check_range("ppo.gamma", self.gamma, 0, 1)
        check_range("ppo.lam", self.lam, 0, 1)
        check(0 < self.clip < 1, f"ppo.clip is {self.clip}: above 0, below 1")
        check(self.value_clip > 0, f"ppo.value_clip is {self.value_clip}: above 0")
        check_range("ppo.value_weight", self.value_weight, 0, 10)
        check_range("ppo.entropy_weight", self.entropy_weight, 0, 1)
        check_range("ppo.kl_coefficient", self.kl_coefficient, 0, 10)
        check_range("ppo.kl_target", self.kl_target, 0, 1000)
        check_range("ppo.kl_horizon", self.kl_horizon, 1, 10_000_000)
        check_range("ppo.missing_eos_penalty", self.missing_eos_penalty, 0, 100)
        check(self.most_kl > 0, f"ppo.most_kl is {self.most_kl}: above 0")
        check_range("ppo.least_entropy", self.least_entropy, 0, 20)
        check_range("ppo.least_eos_rate", self.least_eos_rate, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Rloo:
    """REINFORCE leave-one-out (2402.14740)."""

    completions_per_prompt: int = 4
    beta: float = 0.05  # weight of the KL in the reward
    clip: float = 0.2
    iterations: int = 1  # updates for one batch of completions
    missing_eos_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_range("rloo.completions_per_prompt", self.completions_per_prompt, 2, 1024)
        check_range("rloo.beta", self.beta, 0, 10)
        check(0 < self.clip < 1, f"rloo.clip is {self.clip}: above 0, below 1")
        check_range("rloo.iterations", self.iterations, 1, 64)
        check_range("rloo.missing_eos_penalty", self.missing_eos_penalty, 0, 100)


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Group relative policy optimisation (2402.03300)."""

    completions_per_prompt: int = 8
    beta: float = 0.04  # weight of the KL in the loss
    clip: float = 0.2
    iterations: int = 1
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    missing_eos_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_range("grpo.completions_per_prompt", self.completions_per_prompt, 2, 1024)
        check_range("grpo.beta", self.beta, 0, 10)
        check(0 < self.clip < 1, f"grpo.clip is {self.clip}: above 0, below 1")
        check_range("grpo.iterations", self.iterations, 1, 64)
        check_choice("grpo.loss", self.loss, GRPO_LOSSES)
        check_range("grpo.missing_eos_penalty", self.missing_eos_penalty, 0, 100)


@dataclass(frozen=True, kw_only=True)
class RejectionSampling:
    """Best of N by reward, then SFT on the best (Llama 2, 2307.09288, section 3.2.3)."""

    completions_per_prompt: int = 8

    def __post_init__(self) -> None:
        check_range("rejection_sampling.completions_per_prompt", self.completions_per_prompt, 2, 1024)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Learning from a teacher (2306.13649), or from oneself under a system prompt (2112.00861)."""

    teacher: str = ""  # a folder or hub id; empty: the policy itself, as it is at the start
    system_prompt: str = ""  # the teacher reads it before every prompt, the student does without
    on_policy: float = 0.5  # share of the batches that the student writes itself
    divergence: float = 0.5  # 0: KL(teacher || student), 1: KL(student || teacher), between: Jensen-Shannon

    def __post_init__(self) -> None:
        check_range("distillation.on_policy", self.on_policy, 0, 1)
        check_range("distillation.divergence", self.divergence, 0, 1)


@dataclass(frozen=True, kw_only=True)
class JudgeAudit:
    """Asking a judge what people were asked, to see how far it is one of them."""

    comparisons: int = 200  # held-out ones at most; each is two questions

    def __post_init__(self) -> None:
        check_range("judge_audit.comparisons", self.comparisons, 1, 10_000)


REWARD_KINDS = (
    "model", "ensemble", "gated", "length", "regex", "forbidden", "python", "judge", "hidden_preference",
)  # fmt: skip
EVALUATOR_KINDS = ("model", "ensemble", "gated", "judge")  # that may say which of two policies is better


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A named number for a completion; a run's reward is the weighted sum (training.rlhf.rewards)."""

    name: str
    kind: Literal[
        "model", "ensemble", "gated", "length", "regex", "forbidden", "python", "judge", "hidden_preference"
    ]
    weight: float = 1.0
    location: str = (
        ""  # model: its folder. judge: a local policy, or the address of an OpenAI-compatible server
    )
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            bool(self.name) and len(self.name) <= 60, f"rewards: {self.name!r} is no name of 1 to 60 letters"
        )
        check_choice(f"rewards.{self.name}.kind", self.kind, REWARD_KINDS)
        check_range(f"rewards.{self.name}.weight", self.weight, -1000, 1000)
        watched = self.kind != "hidden_preference" or self.weight == 0
        check(watched, f"rewards.{self.name}.weight is {self.weight}: 0, a hidden preference is only watched")
