"""A run's reward: named functions of a completion, and their weighted sum.

`load_rewards` gives online methods what `training.rlhf.reward_kinds.reward_interface` asks for; `problems` says before the
start what would be refused then, without loading a model.
"""

from collections.abc import Callable, Sequence

from training.rlhf import loading
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.method_settings import RewardFunction
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds import judge, reward_functions, reward_models, watched
from training.rlhf.reward_kinds.reward_interface import RewardBatch
from training.rlhf.reward_options import (
    ForbiddenOptions,
    HiddenPreferenceOptions,
    JudgeOptions,
    LengthOptions,
    ModelOptions,
    PythonOptions,
    RegexOptions,
    is_address,
    options_of,
)
from training.rlhf.run_dir import RunError
from training.rlhf.sampling import Sampled

Part = Callable[[Sequence[Messages], Sequence[Sampled]], list[float]]


class NamedRewards:
    """The functions of a recipe, loaded and ready."""

    def __init__(self, config: RunConfig) -> None:
        self.functions = config.rewards
        self.judges: dict[str, judge.Scorer] = {}
        self.parts = {reward.name: self._load(reward, config) for reward in config.rewards}

    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
        """Numbers for each sample, written after the prompt of the same place, in order."""
        parts = {name: part(prompts, samples) for name, part in self.parts.items()}
        total = [
            sum(reward.weight * parts[reward.name][place] for reward in self.functions)
            for place in range(len(samples))
        ]
        return RewardBatch(total=total, parts=parts)

    def value_model_folder(self) -> str | None:
        """The folder of the first reward model, from which a value model may begin."""
        return next((reward.location for reward in self.functions if reward.kind == "model"), None)

    def figures(self) -> dict[str, float]:
        """What should be watched beside the rewards: the share of a judge's answers that were no number."""
        return {f"judge/{name}/nonsense": one.nonsense_rate for name, one in self.judges.items()}

    def _load(self, reward: RewardFunction, config: RunConfig) -> Part:
        options = options_of(reward)
        where = f"rewards.{reward.name}"
        match options:
            case ModelOptions():
                policy_tokenizer = loading.load_tokenizer(config.model)
                return reward_models.ModelReward(reward, policy_tokenizer=policy_tokenizer).scores
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
    """Errors and warnings about a run's rewards: from files, and from one question to a judge's server."""
    errors: list[RunError] = []
    warnings: list[str] = []
    for reward in config.rewards:
        try:
            warning = _check(reward, config)
        except Refused as refused:
            errors.append(RunError(what=refused.what, where=refused.where, do=refused.do))
        else:
            warnings += [warning] if warning else []
    return errors, warnings


def _check(reward: RewardFunction, config: RunConfig) -> str:
    """A warning or nothing. Raises Refused."""
    options = options_of(reward)
    if isinstance(options, PythonOptions):
        reward_functions.load_function(options, where=f"rewards.{reward.name}")
    if isinstance(options, JudgeOptions) and is_address(reward.location):
        judge.ask_once(reward)
    elif isinstance(options, JudgeOptions):
        loading.load_tokenizer(reward.location)
        loading.check_weights(reward.location, purpose="policy")
    if not isinstance(options, ModelOptions):
        return ""
    tokenizer = loading.load_tokenizer(reward.location)
    loading.check_weights(reward.location, purpose="reward_model")
    reward_models.check_fits(tokenizer, loading.load_tokenizer(config.model), reward)
    return reward_models.check_accuracy(reward)


def _texts(samples: Sequence[Sampled]) -> list[str]:
    return [one.text for one in samples]
