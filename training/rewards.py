"""Which rewards a project's runs may use: what a reward names is loaded or called by the process that trains.

A manager chooses among the project's own reward models and policies, rules, judges at an address, and the
functions of modules that whoever runs the server has allowed (RATCHET_REWARD_MODULES).
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

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


def why_not_permitted(project: Project, rewards: Sequence[dict[str, Any]]) -> str:
    """Why these entries of a checked recipe may not be used here; empty when they may. A query or two."""
    if len(rewards) > MOST:
        return f"rewards: at most {MOST}"
    found = (_why_not(project, reward) for reward in rewards)
    return next((why for why in found if why), "")


def _why_not(project: Project, reward: dict[str, Any]) -> str:
    name, location = f"rewards.{reward['name']}", reward["location"]
    match reward["kind"]:
        case "model":
            if not reward_models(project).filter(folder=location).exists():
                return f"{name}.location is no reward model of this project"
        case "judge":
            if not _is_address(location) and not trained_policies(project).filter(location=location).exists():
                return f"{name}.location is neither an http address nor a policy of this project"
        case "python":
            function = reward["options"].get("function", "")
            module = function.partition(":")[0] if isinstance(function, str) else ""
            if module not in settings.REWARD_MODULES:
                return f"{name}.options: {module or 'no module'} is not in RATCHET_REWARD_MODULES"
        case _ if location:
            return f"{name}.location: a rule needs none"
    return ""


def _is_address(location: str) -> bool:
    """
    >>> _is_address("http://127.0.0.1:8001/v1"), _is_address("file:///etc/passwd"), _is_address("/models/x")
    (True, False, False)
    """
    try:
        parts = urlsplit(location)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
