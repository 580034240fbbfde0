"""Where a policy may be loaded from, and the one way to add one to a project.

The web tier looks at files only; what loads a model (and refuses it again) is training.rlhf.loading.
"""

import json
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError, transaction

from labeling.models import Policy, Project
from training.rlhf.config import HUB_ID

# The embedded default policy.
STARTER = Path(__file__).resolve().parent / "rlhf" / "starter" / "policy"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


class PolicyRefused(Exception):
    """This cannot be a policy; the message says why and what to do."""


def comes_from_starter(policy: Policy) -> bool:
    """Whether the policy is the starter or was trained from it. One query for each ancestor."""
    ancestor: Policy | None = policy
    while ancestor is not None and ancestor.parent_id:
        ancestor = ancestor.parent
    return ancestor is not None and ancestor.location == str(STARTER)


def check_location(location: str) -> str:
    """A folder of a model on this machine, or a hub id, in the form that is stored."""
    location = location.strip()
    if not location:
        raise PolicyRefused("Name a folder on the server or a hub id such as org/model.")
    if location.startswith(("/", ".", "~")):
        return str(_check_folder(Path(location).expanduser()))
    if not HUB_ID.fullmatch(location):
        raise PolicyRefused(f"{location!r} is neither an absolute folder nor a hub id such as org/model.")
    return location


def _check_folder(path: Path) -> Path:
    folder = path.resolve()
    roots = [*map(Path, settings.MODEL_DIRS), Path(settings.RUNS_DIR).resolve(), STARTER]
    if not any(folder.is_relative_to(root) for root in roots):
        raise PolicyRefused(
            f"{path} lies outside the folders for models ({', '.join(map(str, roots))}). "
            "Move it there, or add its folder to RATCHET_MODEL_DIRS."
        )
    if not folder.is_dir():
        raise PolicyRefused(f"{path}: there is no such folder.")
    config = _model_config(folder)
    if "auto_map" in config:
        raise PolicyRefused(f"{path} brings code of its own (auto_map in config.json), which is never run.")
    if any(any(folder.glob(pattern)) for pattern in PICKLED):
        raise PolicyRefused(f"{path} has pickled weights, which can run code. Keep only safetensors there.")
    if not any(folder.glob("*.safetensors")):
        raise PolicyRefused(f"{path} has no weights. Save the model as safetensors.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise PolicyRefused(f"{path} has no tokenizer. Save the tokenizer into the same folder.")
    return folder


def _model_config(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyRefused(f"{folder} is no model: config.json cannot be read ({error}).") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise PolicyRefused(f"{folder} is no model: config.json names no model_type.")
    return config


@transaction.atomic
def register_policy(*, project: Project, name: str, location: str, parent: Policy | None = None) -> Policy:
    """Add a policy to a project. The first one needs no gate: it becomes the current policy."""
    location = check_location(location)
    project = Project.objects.select_for_update().get(pk=project.pk)
    is_first = project.current_policy_id is None
    try:
        with transaction.atomic():
            policy = Policy.objects.create(
                project=project,
                name=name,
                location=location,
                parent=parent,
                state=Policy.State.PROMOTED if is_first else Policy.State.CANDIDATE,
            )
    except IntegrityError as error:
        raise PolicyRefused(f"{project} already has a policy named {name!r}.") from error
    if is_first:
        project.current_policy = policy
        project.save(update_fields=["current_policy"])
    return policy
