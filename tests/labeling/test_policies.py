"""Where a policy may be loaded from: safe models in the folders for models, or a hub id."""

import json
from pathlib import Path
from typing import Any

import pytest

from labeling import policies
from labeling.models import Policy, Project
from tests import factories

INDEX = "model.safetensors.index.json"


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
        (lambda f: (f / INDEX).write_text('{"weight_map": {"w": "../x.safetensors"}}'), "beside it"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"w": 1}}'), "beside it"),
        (lambda f: (f / INDEX).write_text("[]"), "no weight_map"),
        (lambda f: (f / INDEX).write_text("{"), "index.json cannot be read"),
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


def test_a_model_in_several_files_is_taken(models: Path) -> None:
    folder = make_model(models / "sharded")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    assert policies.check_location(str(folder)) == str(folder)


def test_what_a_run_trained_is_the_policy_of_its_own_project_alone(
    project: Project, models: Path, settings: Any
) -> None:
    location = str(make_model(Path(settings.RUNS_DIR) / "7" / "model"))
    trained = Policy.objects.create(
        project=project, name="policy 2", state=Policy.State.CANDIDATE, location=location
    )
    other = factories.make_project("Other")
    models.mkdir()
    (models / "link").symlink_to(location)
    for path in (location, str(models / "link"), str(models / ".." / "runs" / "7" / "model")):
        with pytest.raises(policies.PolicyRefused, match="open it and promote it"):
            policies.choose_policy(project=other, location=path)
        with pytest.raises(policies.PolicyRefused, match="folder of training runs"):
            policies.check_location(path)
    assert not other.policies.exists()
    assert policies.choose_policy(project=project, location=location) == trained


def test_what_is_no_policy_of_a_run_is_nobodys(project: Project, settings: Any) -> None:
    reward_model = make_model(Path(settings.RUNS_DIR) / "8" / "model")
    with pytest.raises(policies.PolicyRefused, match="folder of training runs"):
        policies.choose_policy(project=project, location=str(reward_model))


def test_a_folder_of_the_installation_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for location in ("training/rlhf", "docs"):
        with pytest.raises(policies.PolicyRefused, match="cannot be read as a hub id"):
            policies.check_location(location)
    monkeypatch.chdir(tmp_path)
    assert policies.check_location("org/model") == "org/model"
    (tmp_path / "org" / "model").mkdir(parents=True)
    with pytest.raises(policies.PolicyRefused, match="cannot be read as a hub id"):
        policies.check_location("org/model")


def test_a_name_that_leads_nowhere_is_refused_in_words(models: Path) -> None:
    models.mkdir()
    (models / "loop").symlink_to(models / "loop")
    for name in ("loop", "a" * 300, "x/" + "b" * 300):
        with pytest.raises(policies.PolicyRefused):
            policies.check_location(str(models / name))
