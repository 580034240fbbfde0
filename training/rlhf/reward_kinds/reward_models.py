"""A reward model of ours as one part of a run's reward: may it give one, and what it says of a completion.

Where it reads as the policy writes (same template, same tokens), it scores the very tokens that were drawn;
otherwise, and only where the recipe allows it, the text through its own template. A completion that was cut
is never shown as a finished turn: it lacks the tokens that close one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import loading, rendering, scoring
from training.rlhf.failures import Refused
from training.rlhf.method_settings import RewardFunction
from training.rlhf.rendering import Messages
from training.rlhf.reward_options import ModelOptions, options_of
from training.rlhf.sampling import Sampled


class ModelReward:
    """A loaded reward model. `by_tokens`: it reads what was drawn, not its text."""

    def __init__(self, reward: RewardFunction, *, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        self.options = _options(reward)
        self.model: PreTrainedModel
        self.model, self.tokenizer = loading.load_reward_model(reward.location)
        check_fits(self.tokenizer, policy_tokenizer, reward)
        check_accuracy(reward)
        loading.use_device(self.model)
        self.by_tokens = reads_as(self.tokenizer, policy_tokenizer)
        self.closing = rendering.closing_ids(self.tokenizer)

    def scores(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> list[float]:
        read = self._drawn if self.by_tokens else self._rendered
        return scoring.scores_of_tokens(
            self.model,
            [read(prompt, one) for prompt, one in zip(prompts, samples, strict=True)],
            pad_id=int(self.tokenizer.pad_token_id),
            batch_size=self.options.batch_size,
        )

    def _drawn(self, prompt: Messages, sample: Sampled) -> list[int]:
        """The drawn tokens. A finished turn ends as the template ends it: the score is read there."""
        if sample.finish == "length":
            return [*sample.prompt_ids, *sample.ids]
        return [*sample.prompt_ids, *sample.ids[:-1], *self.closing]

    def _rendered(self, prompt: Messages, sample: Sampled) -> list[int]:
        answer = {"role": "assistant", "content": sample.text}
        ids = rendering.conversation_ids(self.tokenizer, [*prompt, answer])
        if sample.finish == "length" and self.closing and ids[-len(self.closing) :] == self.closing:
            return ids[: -len(self.closing)]
        return ids


def reads_as(reward_tokenizer: PreTrainedTokenizerBase, policy_tokenizer: PreTrainedTokenizerBase) -> bool:
    """Do both render alike, to the token? The reward model's may know a token more, to pad with."""
    known = reward_tokenizer.get_vocab()
    return rendering.template_hash(reward_tokenizer) == rendering.template_hash(policy_tokenizer) and all(
        known.get(token) == number for token, number in policy_tokenizer.get_vocab().items()
    )


def check_fits(
    reward_tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    reward: RewardFunction,
) -> None:
    """Raise Refused for a reward model that reads otherwise than the policy writes, unless that is meant."""
    if _options(reward).other_template or reads_as(reward_tokenizer, policy_tokenizer):
        return
    same = rendering.template_hash(reward_tokenizer) == rendering.template_hash(policy_tokenizer)
    raise Refused(
        f"The reward model was trained with another {'tokenizer' if same else 'chat template'} than the "
        "policy's.",
        f"rewards.{reward.name}: {reward.location}",
        "Train a reward model from this policy, or set its option other_template: then it reads the text of "
        "a completion by its own template.",
    )


def check_accuracy(reward: RewardFunction) -> str:
    """Raise Refused below `min_accuracy` on held-out comparisons; a warning where it was never measured."""
    wanted = _options(reward).min_accuracy
    where = f"rewards.{reward.name}: {reward.location}"
    found = _evaluation(Path(reward.location).resolve().parent / "evaluation.json")
    accuracy = found.get("accuracy")
    if not isinstance(accuracy, int | float):
        return (
            f"Nobody knows how often the reward model {reward.name} agrees with people: there is no accuracy "
            "on held-out comparisons beside it."
        )
    if accuracy < wanted:
        raise Refused(
            f"The reward model agrees with people on {accuracy:.0%} of held-out comparisons, less than "
            f"{wanted:.0%}: a policy would learn its errors.",
            where,
            "Collect more comparisons and train it again, or lower its option min_accuracy.",
        )
    return ""


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _options(reward: RewardFunction) -> ModelOptions:
    options = options_of(reward)
    assert isinstance(options, ModelOptions)
    return options
