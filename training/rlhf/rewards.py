"""A run's reward: named functions of a completion, and their weighted sum.

`load_rewards` gives online methods what `training.rlhf.reward_kinds.reward_interface` asks for; `problems`
says before the start what would be refused then, without loading a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from training.rlhf import loading, prompt_parts, rendering
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.method_settings import RewardFunction
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds import combined_rewards, judge, reward_functions, reward_models, watched
from training.rlhf.reward_kinds.reward_interface import RewardBatch
from training.rlhf.reward_options import (
    EnsembleOptions,
    ForbiddenOptions,
    GatedOptions,
    HiddenPreferenceOptions,
    JudgeOptions,
    LengthOptions,
    ModelOptions,
    PythonOptions,
    RegexOptions,
    beside,
    is_address,
    members,
    options_of,
)
from training.rlhf.run_dir import RunError
from training.rlhf.sampling import Sampled

Columns = dict[str, list[float]]
Part = Callable[[Sequence[Messages], Sequence[Sampled]], list[float] | Columns]


class NamedRewards:
    """The functions of a recipe, loaded and ready."""

    def __init__(self, config: RunConfig) -> None:
        self.functions = config.rewards
        self.by_criterion: list[str] = []
        self.policys = config.parts_of()  # what stands before its prompts, and is not rewarded
        self.tokenizer = loading.load_tokenizer(config.model) if self.policys else None
        self.judges: dict[str, judge.Scorer] = {}
        self.parts = {reward.name: self._load(reward, config) for reward in config.rewards}

    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
        """Numbers for each sample, written after the prompt of the same place, in order."""
        if self.tokenizer is not None:
            prompts = [prompt_parts.without(self.policys, prompt) for prompt in prompts]
            samples = [
                replace(one, prompt_ids=tuple(rendering.prompt_ids(self.tokenizer, prompt)))
                for prompt, one in zip(prompts, samples, strict=True)
            ]
        parts: Columns = {}
        for name, part in self.parts.items():
            found = part(prompts, samples)
            parts |= found if isinstance(found, dict) else {name: found}
        total = [
            sum(reward.weight * parts[reward.name][place] for reward in self.functions)
            for place in range(len(samples))
        ]
        return RewardBatch(total=total, parts=parts)

    @property
    def beside(self) -> list[str]:
        """Parts that are watched beside the rewards: such as how far an ensemble disagrees."""
        return [*(name for reward in self.functions for name in beside(reward)), *self.by_criterion]

    def value_model_folder(self) -> str | None:
        """The folder of the first reward model that is learnt from: a value model may begin there."""
        learnt_from = (one for reward in self.functions if reward.weight for one in members(reward))
        return next((one.location for one in learnt_from), None)

    def figures(self) -> dict[str, float]:
        """What should be watched beside the rewards: the share of a judge's answers that were no number."""
        return {f"judge/{name}/nonsense": one.nonsense_rate for name, one in self.judges.items()}

    def _load(self, reward: RewardFunction, config: RunConfig) -> Part:
        options = options_of(reward)
        where = f"rewards.{reward.name}"
        match options:
            case EnsembleOptions() | GatedOptions():
                tokenizer = loading.load_tokenizer(config.model)
                return combined_rewards.load(reward, policy_tokenizer=tokenizer).score
            case ModelOptions():
                policy_tokenizer = loading.load_tokenizer(config.model)
                model = reward_models.ModelReward(reward, policy_tokenizer=policy_tokenizer)
                names = [reward.name, *(f"{reward.name} {one}" for one in model.criteria)]
                self.by_criterion += names[1:]
                return lambda prompts, samples: dict(
                    zip(names, map(list, zip(*model.columns(prompts, samples), strict=True)), strict=True)
                )
            case LengthOptions():
                return lambda prompts, samples: reward_functions.lengths(samples, options)
            case RegexOptions():
                return lambda prompts, samples: reward_functions.matches(_texts(samples), options)
            case ForbiddenOptions():
                return lambda prompts, samples: reward_functions.forbidden(_texts(samples), options)
            case PythonOptions():
                function = reward_functions.load_function(options, where=where)
                return lambda prompts, samples: reward_functions.call(
                    function, prompts, _texts(samples), where=where
                )
            case HiddenPreferenceOptions():
                return watched.hidden_scores
            case JudgeOptions():
                scorer = judge.Scorer(judge.load(reward, seed=config.seed), rubric=options.rubric)
                self.judges[reward.name] = scorer
                return lambda prompts, samples: scorer.scores(prompts, _texts(samples))


def load_rewards(config: RunConfig) -> NamedRewards:
    """The reward of a recipe. Raises Refused for a model, a module or a judge that cannot give one."""
    return NamedRewards(config)


def problems(config: RunConfig) -> tuple[list[RunError], list[str]]:
    """Errors and warnings about a run's rewards and evaluators, from tokenizers and headers alone.

    A server that is to judge is asked a few questions: one that is away or answers nonsense is an error.
    """
    errors: list[RunError] = []
    warnings: list[str] = []
    named = [("rewards", reward) for reward in config.rewards]
    named += [("evaluators", reward) for reward in config.evaluators]
    for role, reward in named:
        try:
            warnings += _check(reward, config, teaches=role == "rewards")
        except Refused as refused:
            errors.append(RunError(what=refused.what, where=refused.where, do=refused.do))
    return errors, warnings


def _check(reward: RewardFunction, config: RunConfig, *, teaches: bool) -> list[str]:
    """Warnings. `teaches`: a policy learns from it, so it has to read and to agree well. Raises Refused."""
    options = options_of(reward)
    if isinstance(options, PythonOptions):
        reward_functions.load_function(options, where=f"rewards.{reward.name}")
    if isinstance(options, JudgeOptions):
        if is_address(reward.location):
            return judge.asked_for_trial(reward, for_pairs=not teaches or config.method == "judge_audit")
        loading.load_tokenizer(reward.location)
        loading.check_weights(reward.location, purpose="policy")
    warnings = [combined_rewards.unscaled(reward)]
    for one in members(reward):
        tokenizer = loading.load_tokenizer(one.location)
        loading.check_weights(one.location, purpose="reward_model")
        if teaches:
            reward_models.check_fits(tokenizer, loading.load_tokenizer(config.model), one)
            warnings.append(reward_models.check_accuracy(one))
    return [warning for warning in warnings if warning]


def _texts(samples: Sequence[Sampled]) -> list[str]:
    return [one.text for one in samples]
