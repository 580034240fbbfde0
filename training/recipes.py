"""The settings that a run starts with when nobody chose others."""

from copy import deepcopy
from typing import Any

from labeling.models import Policy
from training.models import Run
from training.policies import comes_from_starter

# For the starter policy (about 1 M parameters): full fine-tuning at high rates, half a minute on two cores;
# docs/starter.md has the figures.
SMALL: dict[str, dict[str, Any]] = {
    Run.Method.REWARD_MODEL: {
        "training": {
            "learning_rate": 5e-4,
            "epochs": 2.0,
            "batch_size": 16,
            "max_length": 256,
            "group_by_length": True,
        },
    },
    Run.Method.SAMPLE: {"sampling": {"batch_size": 256}},
    Run.Method.DPO: {
        "training": {
            "learning_rate": 5e-4,
            "epochs": 2.0,
            "batch_size": 16,
            "max_length": 256,
            "group_by_length": True,
        },
        "sampling": {"batch_size": 256},  # a step costs hardly more for many rows than for few
    },
}
# For any other policy: adapters, at the rates that LoRA is usually trained with.
USUAL: dict[str, dict[str, Any]] = {
    Run.Method.REWARD_MODEL: {
        "tuning": {"kind": "lora"},
        "training": {
            "learning_rate": 1e-4,
            "epochs": 1.0,
            "batch_size": 4,
            "gradient_accumulation": 4,
            "max_length": 1024,
            "gradient_checkpointing": True,
        },
    },
    Run.Method.DPO: {
        "tuning": {"kind": "lora"},
        "training": {
            "learning_rate": 2e-5,
            "epochs": 1.0,
            "batch_size": 2,
            "gradient_accumulation": 8,
            "max_length": 1024,
            "gradient_checkpointing": True,
        },
    },
}


def default_settings(*, method: str, policy: Policy | None) -> dict[str, Any]:
    """Parts of a RunConfig (`tuning`, `training`, `sampling`, `seed`) that work for this policy."""
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
