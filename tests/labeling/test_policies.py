"""Where a policy may be loaded from: safe models in the folders for models, or a hub id."""

import json
from pathlib import Path
from typing import Any

import pytest

from labeling import policies
from labeling.models import Project


def make_model(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def models(settings: Any, tmp_path: Path) -> Path:
    settings.MODEL_DIRS = [tmp_path / "models"]
    return tmp_path / "models"


def test_a_chosen_policy_is_the_projects_current_one_and_is_not_made_twice(
    project: Project, models: Path
) -> None:
    location = str(make_model(models / "good"))
    first = policies.choose_policy(project=project, location=location)
    second = policies.choose_policy(project=project, location="org/good")
    again = policies.choose_policy(project=project, location=location)
    project.refresh_from_db()
    assert (first.name, second.name, again) == ("good", "good 2", first)
    assert project.current_policy == first


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "is no model"),
        (lambda f: (f / "config.json").write_text("{"), "is no model"),
        (lambda f: (f / "config.json").write_text('{"auto_map": {}, "model_type": "x"}'), "code of its own"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "pickled"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    ],
)
def test_a_folder_that_is_no_safe_model_is_refused(models: Path, spoil: Any, said: str) -> None:
    folder = make_model(models / "bad")
    spoil(folder)
    with pytest.raises(policies.PolicyRefused, match=said):
        policies.check_location(str(folder))


def test_only_folders_for_models_are_looked_into(models: Path, tmp_path: Path) -> None:
    outside = make_model(tmp_path / "outside")
    models.mkdir()
    (models / "link").symlink_to(outside)
    for location in (str(outside), str(models / ".." / "outside"), str(models / "link")):
        with pytest.raises(policies.PolicyRefused, match="outside the folders"):
            policies.check_location(location)
    for location in ("", "not an id!", "a/b/c"):
        with pytest.raises(policies.PolicyRefused):
            policies.check_location(location)
