"""What is checked before a run is made: its parts, its recipe, and what its recipe would load or call."""

import math
from collections.abc import Iterator
from typing import Any

from labeling.models import Policy, PreferenceDataset, Project
from training.ingredients import RUNNABLE, can_be_learnt_from, trained_policies
from training.models import Artifact, Run
from training.rewards import why_not_permitted
from training.rlhf.config import ConfigError, RunConfig
from training.rlhf.methods import METHODS

UNFIT = "This recipe cannot be run."
LARGEST = {  # whole numbers of a recipe; others end at 2**31
    "seed": 2**32 - 1,
    "training.max_steps": 10_000_000,
    "training.save_every": 10_000_000,
    "training.log_every": 10_000_000,
    "tuning.lora_alpha": 10_000,
}


class RunRefused(Exception):
    """This cannot be done with a run; the message says why, for the person who asked."""


def check_parts(
    project: Project, method: str, dataset: PreferenceDataset, policy: Policy, reward_model: Artifact | None
) -> None:
    if method not in RUNNABLE:
        raise RunRefused(f"{method!r} is no method of training: {', '.join(RUNNABLE)}.")
    if dataset.project_id != project.pk:
        raise RunRefused(f"The dataset {dataset} belongs to another project.")
    if not can_be_learnt_from(dataset, method):
        needs = METHODS[method]
        raise RunRefused(
            f"The dataset {dataset} has nothing for {needs.label} to learn from: {needs.learns_from}"
        )
    if policy.project_id != project.pk:
        raise RunRefused(f"The policy {policy} belongs to another project.")
    if not policy.location:
        raise RunRefused(f"The policy {policy} has no model: only its completions are known.")
    if policy.is_served:
        raise RunRefused(
            f"The policy {policy} is behind {policy.location}: its weights are not here, so it cannot "
            "be trained. Start from a policy whose model is here; once people have judged what the server "
            "wrote, SFT and DPO can learn from it."
        )
    if policy.is_prompted and method == Run.Method.PRETRAINING:
        raise RunRefused(
            f"The policy {policy} has a system prompt or examples, which have no place before a text: start "
            "from the policy without them."
        )
    if reward_model is None:
        return
    if reward_model.kind != Artifact.Kind.REWARD_MODEL or reward_model.run.project_id != project.pk:
        raise RunRefused(f"{reward_model} is no reward model of this project.")
    if reward_model.run.state != Run.State.COMPLETE:
        raise RunRefused(f"{reward_model.run} has not ended: its reward model is not complete.")


def check_teacher(project: Project, recipe: dict[str, Any]) -> None:
    """A teacher is loaded by the process that trains: it is one of the project's own policies."""
    teacher = recipe.get("distillation", {}).get("teacher", "")
    if teacher and not trained_policies(project).filter(location=teacher).exists():
        raise RunRefused(f"{UNFIT} distillation.teacher is no policy of this project")


def check_rewards(project: Project, recipe: dict[str, Any]) -> None:
    learns_from_rewards = METHODS[recipe["method"]].is_online or recipe["method"] == Run.Method.JUDGE_AUDIT
    if recipe["rewards"] and not learns_from_rewards:
        raise RunRefused(f"{UNFIT} rewards: {METHODS[recipe['method']].label} learns from none.")
    if recipe["evaluators"] and METHODS[recipe["method"]].makes != "policy":
        raise RunRefused(f"{UNFIT} evaluators: they compare policies, and this makes none.")
    for role in ("rewards", "evaluators"):
        if why := why_not_permitted(project, recipe[role], role):
            raise RunRefused(f"{UNFIT} {why}")


def checked_recipe(config: dict[str, Any]) -> dict[str, Any]:
    try:
        checked = RunConfig.from_json(config).to_json()
    except (ConfigError, OverflowError) as error:
        raise RunRefused(f"{UNFIT} {error}") from error
    for name, value in _settings_in(checked):
        if reason := _why_unstorable(name, value):
            raise RunRefused(f"{UNFIT} {name!a}: {reason}")
    return checked


def _settings_in(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted name; the names that people chose are values too."""
    if isinstance(config, dict):
        for key, value in config.items():
            below = f"{name}.{key}" if name else key
            yield below, key
            yield from _settings_in(value, below)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from _settings_in(value, f"{name}.{number}")
    else:
        yield name, config


def _why_unstorable(name: str, value: Any) -> str:
    """Why a value cannot be written down or is beyond all sense; empty when it is neither."""
    match value:
        case str() if not _is_storable(value):
            return "it holds a character that cannot be stored."
        case float() if not math.isfinite(value):
            return f"{value} is no finite number."
        case int() if abs(value) > LARGEST.get(name, 2**31 - 1):
            return f"at most {LARGEST.get(name, 2**31 - 1):,}."
    return ""


def _is_storable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
