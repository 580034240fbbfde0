"""The settings that a run starts with when nobody chose others."""

from copy import deepcopy
from typing import Any

from labeling.models import Policy
from training.models import Run
from training.policies import comes_from_starter

# For the starter policy (about 1 M parameters): full fine-tuning at high rates, half a minute on two cores;
# docs/starter.md has the figures. A step of sampling costs hardly more for many rows than for few.
STORIES: dict[str, Any] = {"batch_size": 256, "max_new_tokens": 128}
ROWS: dict[str, Any] = {
    "learning_rate": 5e-4,
    "epochs": 2.0,
    "batch_size": 16,
    "max_length": 256,
    "group_by_length": True,
}
# Where a step draws a batch of completions for training: steps, not epochs, end it.
DRAWS: dict[str, Any] = {"learning_rate": 3e-4, "epochs": 1.0, "max_steps": 40, "max_length": 256}
SMALL: dict[str, dict[str, Any]] = {
    Run.Method.REWARD_MODEL: {"training": ROWS},
    Run.Method.SAMPLE: {"sampling": {"batch_size": 256}},
    Run.Method.PRETRAINING: {"training": {**ROWS, "group_by_length": False}, "sampling": STORIES},
    Run.Method.SFT: {"training": ROWS, "sampling": STORIES},
    Run.Method.DPO: {"training": ROWS, "sampling": STORIES},
    Run.Method.KTO: {"training": ROWS, "sampling": STORIES},
    Run.Method.PPO: {
        "training": {**DRAWS, "learning_rate": 2e-4, "batch_size": 32, "save_every": 10},
        "ppo": {"rollout_size": 128},
        "sampling": STORIES,
    },
    Run.Method.RLOO: {
        # At 3e-4 and 40 steps it moved little (KL 2 to 3, hidden preference 0.74): docs/methods.md.
        "training": {**DRAWS, "learning_rate": 6e-4, "max_steps": 80, "batch_size": 64},
        "rloo": {"completions_per_prompt": 4, "beta": 0.03},
        "sampling": STORIES,
    },
    Run.Method.GRPO: {
        "training": {**DRAWS, "learning_rate": 8e-4, "batch_size": 64},
        "grpo": {"completions_per_prompt": 8, "beta": 0.02},
        "sampling": STORIES,
    },
    Run.Method.REJECTION_SAMPLING: {"training": ROWS, "sampling": STORIES},
    Run.Method.DISTILLATION: {"training": ROWS, "sampling": STORIES},
}
# For any other policy: adapters, at the rates that LoRA is usually trained with.
ADAPTERS: dict[str, Any] = {"kind": "lora"}
LONG_ROWS: dict[str, Any] = {
    "epochs": 1.0,
    "batch_size": 2,
    "gradient_accumulation": 8,
    "max_length": 1024,
    "gradient_checkpointing": True,
}
LONG_DRAWS: dict[str, Any] = {
    "learning_rate": 1e-5,
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
        "training": {**LONG_ROWS, "learning_rate": 1e-4, "batch_size": 4, "gradient_accumulation": 4},
    },
    Run.Method.PRETRAINING: {"training": {**LONG_ROWS, "learning_rate": 1e-5}},
    Run.Method.SFT: {"tuning": ADAPTERS, "training": {**LONG_ROWS, "learning_rate": 1e-4}},
    Run.Method.DPO: {"tuning": ADAPTERS, "training": {**LONG_ROWS, "learning_rate": 2e-5}},
    # KTO's KL term is an average over the batch (2402.01306, section 4): it wants more than two rows.
    Run.Method.KTO: {
        "tuning": ADAPTERS,
        "training": {**LONG_ROWS, "learning_rate": 2e-5, "batch_size": 4, "gradient_accumulation": 4},
    },
    Run.Method.PPO: {"tuning": ADAPTERS, "training": LONG_DRAWS, "sampling": ANSWERS},
    Run.Method.RLOO: {"tuning": ADAPTERS, "training": LONG_DRAWS, "sampling": ANSWERS},
    Run.Method.GRPO: {"tuning": ADAPTERS, "training": LONG_DRAWS, "sampling": ANSWERS},
    Run.Method.REJECTION_SAMPLING: {
        "tuning": ADAPTERS,
        "training": {**LONG_ROWS, "learning_rate": 1e-4},
        "sampling": ANSWERS,
    },
    Run.Method.DISTILLATION: {
        "tuning": ADAPTERS,
        "training": {**LONG_ROWS, "learning_rate": 1e-4},
        "sampling": ANSWERS,
    },
}


def default_settings(*, method: str, policy: Policy | None) -> dict[str, Any]:
    """Parts of a RunConfig (`tuning`, `training`, `sampling`, the method's own) that work for this policy."""
    small = policy is not None and comes_from_starter(policy)
    return deepcopy((SMALL if small else USUAL).get(method, {}))


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
