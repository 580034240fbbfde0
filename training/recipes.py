"""The settings that a run starts with when nobody chose others.

Two sets, for small policies and for others; the learning rate follows from method, kind of tuning and size
(training.rates), so that another kind of tuning brings its own rate along.
"""

from copy import deepcopy
from typing import Any

from labeling.models import Policy
from training.model_size import parameters_of
from training.models import Run
from training.policies import comes_from_starter
from training.rates import usual_rate
from training.rlhf.tuning_settings import KINDS, PREFIXES

# For the starter policy (about 1 M parameters): full fine-tuning at high rates, half a minute on two cores;
# docs/starter.md has the figures. A step of sampling costs hardly more for many rows than for few.
STORIES: dict[str, Any] = {"batch_size": 256, "max_new_tokens": 128}
ROWS: dict[str, Any] = {
    "epochs": 2.0,
    "batch_size": 16,
    "max_length": 256,
    "group_by_length": True,
}
# Where a step draws a batch of completions for training: steps, not epochs, end it.
DRAWS: dict[str, Any] = {"epochs": 1.0, "max_steps": 40, "max_length": 256}
SMALL: dict[str, dict[str, Any]] = {
    Run.Method.REWARD_MODEL: {"training": ROWS},
    Run.Method.SAMPLE: {"sampling": {"batch_size": 256}},
    Run.Method.PRETRAINING: {"training": {**ROWS, "group_by_length": False}, "sampling": STORIES},
    Run.Method.SFT: {"training": ROWS, "sampling": STORIES},
    Run.Method.DPO: {"training": ROWS, "sampling": STORIES},
    Run.Method.KTO: {"training": ROWS, "sampling": STORIES},
    Run.Method.PPO: {
        # Updates of 32, read in two halves of like length: a quarter faster, and half of the memory.
        "training": {**DRAWS, "batch_size": 16, "gradient_accumulation": 2, "save_every": 10},
        "ppo": {"rollout_size": 128},
        "sampling": STORIES,
    },
    Run.Method.RLOO: {
        # At a rate of 3e-4 and 40 steps it moved little (KL 2 to 3, hidden preference 0.74): docs/methods.md.
        "training": {**DRAWS, "max_steps": 80, "batch_size": 64},
        "rloo": {"completions_per_prompt": 4, "beta": 0.03},
        "sampling": STORIES,
    },
    Run.Method.GRPO: {
        "training": {**DRAWS, "batch_size": 64},
        "grpo": {"completions_per_prompt": 8, "beta": 0.02},
        "sampling": STORIES,
    },
    Run.Method.REJECTION_SAMPLING: {"training": ROWS, "sampling": STORIES},
    Run.Method.DISTILLATION: {"training": ROWS, "sampling": STORIES},
    Run.Method.CRITIQUE_REVISION: {"sampling": {"batch_size": 64, "max_new_tokens": 96}},
    Run.Method.AI_PREFERENCES: {"sampling": {"batch_size": 64, "max_new_tokens": 128}},
}
# For any other policy: adapters.
ADAPTERS: dict[str, Any] = {"kind": "lora"}
LONG_ROWS: dict[str, Any] = {
    "epochs": 1.0,
    "batch_size": 2,
    "gradient_accumulation": 8,
    "max_length": 1024,
    "gradient_checkpointing": True,
}
LONG_DRAWS: dict[str, Any] = {
    "epochs": 1.0,
    "batch_size": 8,
    "gradient_accumulation": 4,
    "max_length": 1024,
    "gradient_checkpointing": True,
}
ANSWERS: dict[str, Any] = {"batch_size": 32, "max_new_tokens": 256}
USUAL: dict[str, dict[str, Any]] = {
    Run.Method.REWARD_MODEL: {
        "tuning": ADAPTERS,
        "training": {**LONG_ROWS, "batch_size": 4, "gradient_accumulation": 4},
    },
    Run.Method.PRETRAINING: {"training": LONG_ROWS},
    Run.Method.SFT: {"tuning": ADAPTERS, "training": LONG_ROWS},
    Run.Method.DPO: {"tuning": ADAPTERS, "training": LONG_ROWS},
    # KTO's KL term is an average over the batch (2402.01306, section 4): it wants more than two rows.
    Run.Method.KTO: {
        "tuning": ADAPTERS,
        "training": {**LONG_ROWS, "batch_size": 4, "gradient_accumulation": 4},
    },
    Run.Method.PPO: {"tuning": ADAPTERS, "training": LONG_DRAWS, "sampling": ANSWERS},
    Run.Method.RLOO: {"tuning": ADAPTERS, "training": LONG_DRAWS, "sampling": ANSWERS},
    Run.Method.GRPO: {"tuning": ADAPTERS, "training": LONG_DRAWS, "sampling": ANSWERS},
    Run.Method.REJECTION_SAMPLING: {
        "tuning": ADAPTERS,
        "training": LONG_ROWS,
        "sampling": ANSWERS,
    },
    Run.Method.DISTILLATION: {
        "tuning": ADAPTERS,
        "training": LONG_ROWS,
        "sampling": ANSWERS,
    },
    Run.Method.CRITIQUE_REVISION: {"sampling": ANSWERS},
    Run.Method.AI_PREFERENCES: {"sampling": ANSWERS},
}


def default_settings(*, method: str, policy: Policy | None, kind: str = "") -> dict[str, Any]:
    """Parts of a RunConfig (`tuning`, `training`, `sampling`, the method's own) that work for this policy.

    `kind` of tuning: the one that somebody chose; else the usual one. Reads headers of the policy's files.
    """
    small = policy is not None and comes_from_starter(policy)
    found = deepcopy((SMALL if small else USUAL).get(method, {}))
    if "training" not in found:
        return found
    if kind:
        found["tuning"] = {**found.get("tuning", {}), "kind": kind}
    training = found["training"]
    training["learning_rate"] = rate_for(method=method, policy=policy, kind=kind_in(found))
    if training.get("gradient_checkpointing") and kind in PREFIXES:
        training["gradient_checkpointing"] = False  # it throws away what a prefix hands on
    return found


def rate_for(*, method: str, policy: Policy | None, kind: str) -> float:
    """The usual learning rate for this policy."""
    if policy is not None and comes_from_starter(policy):
        return usual_rate(method, kind, 1_000_000)
    return usual_rate(method, kind, parameters_of(policy.location) if policy is not None else None)


def kind_in(recipe: dict[str, Any]) -> str:
    """The kind of tuning in parts of a recipe.

    >>> kind_in({"tuning": {"kind": "lora"}}), kind_in({})
    ('lora', 'full')
    """
    tuning = recipe.get("tuning")
    kind = tuning.get("kind") if isinstance(tuning, dict) else None
    return kind if isinstance(kind, str) and kind in KINDS else "full"


def merged(defaults: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The chosen values over the defaults, section by section.

    >>> merged({"training": {"epochs": 1.0, "beta": 0.1}}, {"training": {"beta": 0.2}, "seed": 7})
    {'training': {'epochs': 1.0, 'beta': 0.2}, 'seed': 7}
    """
    result = deepcopy(defaults)
    for name, value in chosen.items():
        section = result.get(name)
        result[name] = (
            {**section, **value} if isinstance(section, dict) and isinstance(value, dict) else value
        )
    return result
