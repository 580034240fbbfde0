"""Which rewards a project's runs may use: what one names is loaded or called by the process that trains.

A manager chooses among the project's own reward models and policies, and rules. Whoever runs the server
allows the servers that judge (RATCHET_JUDGES: they are sent what policies write, and the key) and the modules
whose functions are called (RATCHET_REWARD_MODULES).
"""

from collections.abc import Sequence
from typing import Any

from django.conf import settings

from labeling.models import Project
from training.ingredients import reward_models, trained_policies
from training.models import Artifact

MOST = 16  # rewards of one run


def reward_from(model: Artifact, *, name: str = "", weight: float = 1.0) -> dict[str, Any]:
    """A reward model as an entry of a recipe's `rewards`."""
    return {
        "name": name or f"reward model {model.run_id}",
        "kind": "model",
        "weight": weight,
        "location": model.folder,
        "options": {},
    }


def watched(rewards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rewards of a run in the starter's world, and what its people want, at weight 0: only shown."""
    if not rewards or any(reward.get("kind") == "hidden_preference" for reward in rewards):
        return list(rewards)
    return [*rewards, {"name": "hidden preference", "kind": "hidden_preference", "weight": 0.0}]


def why_not_permitted(project: Project, rewards: Sequence[dict[str, Any]], role: str = "rewards") -> str:
    """Why these entries of a checked recipe may not be used here; empty when they may. A query or two.

    `role`: rewards, or evaluators.
    """
    if len(rewards) > MOST:
        return f"{role}: at most {MOST}"
    found = (_why_not(project, reward, role) for reward in rewards)
    return next((why for why in found if why), "")


def _why_not(project: Project, reward: dict[str, Any], role: str) -> str:
    name, location, options = f"{role}.{reward['name']}", reward["location"], reward["options"]
    match reward["kind"]:
        case "ensemble" | "gated":
            named = [*options.get("models", []), *(options.get(one) for one in ("helpfulness", "safety"))]
            folders = {folder for folder in named if folder}
            if location:
                return f"{name}.location: its models are named among its options"
            if reward_models(project).filter(folder__in=folders).count() < len(folders):
                return f"{name}: one of its models is no reward model of this project"
        case "model":
            if not reward_models(project).filter(folder=location).exists():
                return f"{name}.location is no reward model of this project"
        case "judge":
            policies = trained_policies(project).filter(location=location)
            if location not in settings.JUDGES and not policies.exists():
                return f"{name}.location is neither in RATCHET_JUDGES nor a policy of this project"
        case "python":
            function = reward["options"].get("function", "")
            module = function.partition(":")[0] if isinstance(function, str) else ""
            if module not in settings.REWARD_MODULES:
                return f"{name}.options: {module or 'no module'} is not in RATCHET_REWARD_MODULES"
        case _ if location:
            return f"{name}.location: a rule needs none"
    return ""
