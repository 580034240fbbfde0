"""Who says which of two policies writes better, beside the held-out reward model: a recipe's `evaluators`.

An ensemble or a pair of gated reward models scores what both wrote; a judge is asked about each two of them
in both orders, and what is no answer counts for nobody. What an online run was rewarded by is read once more
where several models gave it: how far they disagree about what the policy became says whether it left the
texts that they know.

One evaluator that fails leaves its error in place of its figures, and takes nobody else's.
"""

import gc
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from training.rlhf import loading
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.measures import figures
from training.rlhf.measures.diversity import length_controlled_win_rate
from training.rlhf.method_settings import RewardFunction
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds import combined_rewards, judge, reward_models
from training.rlhf.reward_options import JudgeOptions, beside, options_of
from training.rlhf.run_dir import ProgressWriter
from training.rlhf.sampling import Sampled

Samples = dict[str, list[Sampled]]  # what "new" and "old" wrote to the same prompts
SCORE_OF_VERDICT = {"first": 1.0, "second": 0.0, "tie": 0.5, "inconsistent": 0.5}


class Said(NamedTuple):
    """`figures`: an entry of evaluation.json. `scores`: of each policy's completions, in order, by name."""

    figures: list[dict[str, Any]]
    scores: dict[str, dict[str, list[float]]]


def ask(config: RunConfig, prompts: Sequence[Messages], samples: Samples, progress: ProgressWriter) -> Said:
    """Every evaluator of the recipe, one after the other."""
    said = Said([], {name: {} for name in samples})
    own = [reward for reward in config.rewards if beside(reward)]
    for reward in [*config.evaluators, *own] if prompts else []:
        progress.write(f"{reward.name} compares what both wrote")
        try:
            found = _one(reward, config, prompts, samples, said)
        except Refused as refused:
            found = {"error": {"what": refused.what, "where": refused.where, "do": refused.do}}
        head = {"name": reward.name, "kind": reward.kind, "learnt_from": reward in own}
        said.figures.append(head | found)
        gc.collect()
        torch.cuda.empty_cache()
    return said


def _one(
    reward: RewardFunction, config: RunConfig, prompts: Sequence[Messages], samples: Samples, said: Said
) -> dict[str, Any]:
    if reward.kind == "judge":
        return _by_judge(reward, config, prompts, samples)
    tokenizer = loading.load_tokenizer(config.model)
    texts = [one.text for name in ("new", "old") for one in samples[name]]
    lenient = _as_evaluator(reward)
    if reward.kind == "model":
        model = reward_models.ModelReward(lenient, policy_tokenizer=tokenizer)
        columns = {reward.name: model.scores_of_texts([*prompts, *prompts], texts)}
    else:
        several = combined_rewards.load(lenient, policy_tokenizer=tokenizer)
        columns = several.score_texts([*prompts, *prompts], texts)
    halves = {"new": slice(0, len(prompts)), "old": slice(len(prompts), None)}
    found: dict[str, Any] = {}
    for policy, half in halves.items():
        for name, column in columns.items():
            said.scores[policy][name] = column[half]
            short = name.removeprefix(reward.name).strip() or "reward"
            found[f"{short}_{policy}"] = sum(column[half]) / len(prompts)
    new, old = (said.scores[policy][reward.name] for policy in halves)
    won = [(one > other) + 0.5 * (one == other) for one, other in zip(new, old, strict=True)]
    return _win_rate(won, samples, list(range(len(prompts))), seed=config.seed) | found


def _as_evaluator(reward: RewardFunction) -> RewardFunction:
    """It teaches nobody: whatever its template and its accuracy, it may say what it thinks."""
    options = {**reward.options, "min_accuracy": 0.0, "other_template": True}
    return RewardFunction(
        name=reward.name, kind=reward.kind, weight=reward.weight, location=reward.location, options=options
    )


def _by_judge(
    reward: RewardFunction, config: RunConfig, prompts: Sequence[Messages], samples: Samples
) -> dict[str, Any]:
    options = options_of(reward)
    assert isinstance(options, JudgeOptions)
    found = judge.preferences(
        judge.load(reward, seed=config.seed),
        rubric=options.rubric,
        prompts=prompts,
        ones=[one.text for one in samples["new"]],
        others=[one.text for one in samples["old"]],
    )
    heard = [place for place, verdict in enumerate(found.verdicts) if verdict != "nonsense"]
    won = [SCORE_OF_VERDICT[found.verdicts[place]] for place in heard]
    return _win_rate(won, samples, heard, seed=config.seed) | {
        "counts": found.counts,
        "nonsense": found.counts["nonsense"] / len(prompts),
        "asked": len(prompts),
    }


def _win_rate(won: Sequence[float], samples: Samples, places: Sequence[int], *, seed: int) -> dict[str, Any]:
    """Of the new policy at these prompts, bootstrapped over prompts, and as if both wrote equally long."""
    if not won:
        return {"win_rate": None, "low": None, "high": None, "length_controlled": None, "n": 0}
    rate = figures.clustered_rate(won, places, seed=seed)
    longer_by = [float(samples["new"][place].tokens - samples["old"][place].tokens) for place in places]
    return {
        "win_rate": rate["rate"],
        "low": rate["low"],
        "high": rate["high"],
        "n": rate["n"],
        "length_controlled": length_controlled_win_rate(won, longer_by),
    }
