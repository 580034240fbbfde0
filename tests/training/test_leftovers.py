"""What a killed process leaves half-written is swept when its run is taken up or deleted; nothing else."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User

from labeling.models import Project
from tests.training.stage import make_run
from training.models import Run
from training.rlhf import leftovers
from training.rlhf.run_dir import RunDir, write_json
from training.run_folders import write_run_folder


@pytest.fixture
def run(project: Project, ann: User) -> Run:
    return make_run(project, ann)


def killed_in(folder: RunDir) -> None:
    """As after kill -9, wherever it may strike."""
    for name in (".result.json.4711", ".completions.jsonl.23", ".taught.jsonl.23", ".drawn.jsonl"):
        (folder.path / name).write_text("half", encoding="utf-8")
    for name in ("model.draft", "checkpoints/draft", "checkpoints/replaced", "checkpoints/checkpoint-5"):
        (folder.path / name).mkdir(parents=True)
    write_json(folder.checkpoints / "checkpoint-5" / "complete.json", {"step": 5})


def names_in(folder: RunDir) -> set[str]:
    return {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}


def test_drafts_go_and_what_a_run_goes_on_from_stays(run: Run) -> None:
    folder = write_run_folder(run)
    before = names_in(folder)
    killed_in(folder)
    assert leftovers.sweep(folder) == [
        ".completions.jsonl.23", ".result.json.4711", ".taught.jsonl.23", "draft", "model.draft"
    ]  # fmt: skip
    assert names_in(folder) - before == {
        ".drawn.jsonl", "checkpoints", "checkpoints/replaced", "checkpoints/checkpoint-5",
        "checkpoints/checkpoint-5/complete.json",
    }  # fmt: skip
    assert leftovers.sweep(folder) == []


def test_a_folder_that_was_half_written_is_swept_when_the_run_is_taken_up(run: Run) -> None:
    left = run.folder.with_name(f".{run.pk}.4711")
    others = [run.folder.with_name(name) for name in (f".{run.pk}1.4711", f"{run.pk}.before-20260101")]
    for folder in (left, *others):
        (folder / "data").mkdir(parents=True)
    write_run_folder(run)
    assert not left.exists()
    assert all(folder.exists() for folder in others)  # another run's, and one that was set aside


def test_a_deleted_run_leaves_its_records_and_no_checkpoints(
    run: Run, django_capture_on_commit_callbacks: Any
) -> None:
    folder = write_run_folder(run)
    killed_in(folder)
    with django_capture_on_commit_callbacks(execute=True):
        run.delete()
    assert not folder.checkpoints.exists()
    assert not any(name.startswith((".result", "model.draft")) for name in names_in(folder))
    assert json.loads(folder.config.read_text())["method"]


def test_the_folder_of_another_database_is_nobodys_to_sweep(
    run: Run, django_capture_on_commit_callbacks: Any
) -> None:
    folder = write_run_folder(run)
    write_json(folder.path / "run.json", {"run": run.pk, "created_at": "2020-01-01T00:00:00+00:00"})
    killed_in(folder)
    with django_capture_on_commit_callbacks(execute=True):
        run.delete()
    assert folder.checkpoints.exists()
