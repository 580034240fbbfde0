"""Where a policy may be loaded from, and the one way to choose a project's policy by hand.

Files are only looked at here; what loads a model, and refuses it again, is the GPU side.
"""

import json
import re
from pathlib import Path

from django.conf import settings
from django.db import transaction

from labeling.models import Policy, Project

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


class PolicyRefused(Exception):
    """This cannot be a policy; the message says why and what to do."""


def starter_folder() -> Path:
    """Where the embedded default policy is, in the form that is stored."""
    return Path(settings.STARTER_POLICY).resolve()


def check_location(location: str, *, project: Project | None = None) -> str:
    """A folder of a model on this machine, or a hub id, in the form that is stored.

    What a run trained belongs to its project: without one, or for another, its folder is refused.
    """
    location = location.strip()
    if not location:
        raise PolicyRefused("Name a folder on the server or a hub id such as org/model.")
    if location.startswith(("/", ".", "~")):
        return str(_check_folder(Path(location), project))
    if not HUB_ID.fullmatch(location) or ".." in location:
        raise PolicyRefused(f"{location!r} is neither an absolute folder nor a hub id such as org/model.")
    # Whatever loads a model takes a folder of this name below its own before it asks the hub.
    if any((Path(base) / location).exists() for base in (settings.BASE_DIR, Path.cwd())):
        raise PolicyRefused(
            f"{location} is a folder or file of this installation, so it cannot be read as a hub id. "
            "Name a model's folder by its whole path, or another hub id."
        )
    return location


def _check_folder(path: Path, project: Project | None) -> Path:
    folder = _resolved(path)
    runs = Path(settings.RUNS_DIR).resolve()
    roots = [*map(Path, settings.MODEL_DIRS), runs, starter_folder()]
    if not path.is_absolute() or not any(folder.is_relative_to(root) for root in roots):
        raise PolicyRefused(
            f"{path} lies outside the folders for models ({', '.join(map(str, settings.MODEL_DIRS))}). "
            "Move it there, or add its folder to RATCHET_MODEL_DIRS."
        )
    if folder.is_relative_to(runs) and not _is_policy_of(project, folder):
        raise PolicyRefused(
            f"{path} lies in the folder of training runs. A policy that a run trained is chosen on its own "
            "page, in its project: open it and promote it."
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
    for index in folder.glob("*.safetensors.index.json"):
        _check_index(index)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise PolicyRefused(f"{path} has no tokenizer. Save the tokenizer into the same folder.")
    return folder


def _resolved(path: Path) -> Path:
    if "\0" in str(path):
        raise PolicyRefused("A folder's name has no NUL character.")
    try:
        folder = path.resolve()
        folder.is_dir()  # raises for a name that no disk can hold
    except RuntimeError as error:  # what resolve() raises for a loop
        raise PolicyRefused(
            f"{path} is a link that leads back to itself. Name the model's folder."
        ) from error
    except OSError as error:
        raise PolicyRefused(f"{path} cannot be looked at: {error.strerror}. Check its spelling.") from error
    return folder


def _is_policy_of(project: Project | None, folder: Path) -> bool:
    return project is not None and Policy.objects.filter(project=project, location=str(folder)).exists()


def _check_index(index: Path) -> None:
    """The files of weights that an index names must lie beside it: they are opened as they stand there."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise PolicyRefused(f"{index.parent} is no model: {index.name} has no weight_map.")
    for name in names.values():
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise PolicyRefused(
                f"{index.parent}: {index.name} names {str(name)[:80]!r} as weights, which is no .safetensors "
                "file beside it. Save the model again, all its files in one folder."
            )


def _model_config(folder: Path) -> dict[str, object]:
    config = _read_json(folder / "config.json")
    if "model_type" not in config:
        raise PolicyRefused(f"{folder} is no model: config.json names no model_type.")
    return config


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyRefused(f"{path.parent} is no model: {path.name} cannot be read ({error}).") from error
    return value if isinstance(value, dict) else {}


@transaction.atomic
def choose_policy(*, project: Project, location: str) -> Policy:
    """Make the model at a location the project's current policy, past the gate: a manager's decision.

    A policy of the project that is loaded from there already is that policy again.
    """
    location = check_location(location, project=project)
    locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    there = Policy.objects.filter(project=locked, location=location).order_by("pk")
    policy = there.filter(system_prompt="", examples=[]).last() or there.last()
    if policy is None:
        policy = Policy.objects.create(
            project=locked, name=_free_name(locked, location), location=location, state=Policy.State.PROMOTED
        )
    elif policy.state != Policy.State.PROMOTED:
        policy.state = Policy.State.PROMOTED
        policy.save(update_fields=["state"])
    locked.current_policy = project.current_policy = policy
    locked.save(update_fields=["current_policy"])
    return policy


def _free_name(project: Project, location: str) -> str:
    is_starter = location == str(starter_folder())
    name = "starter" if is_starter else Path(location).name[:100]
    taken = set(project.policies.filter(name__startswith=name).values_list("name", flat=True))
    names = [name, *(f"{name} {number}" for number in range(2, len(taken) + 2))]
    return next(one for one in names if one not in taken)
