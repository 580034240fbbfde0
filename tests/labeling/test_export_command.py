"""manage.py export_preferences: what a script relies on."""

import errno
import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError

from labeling.datasets import DamagedDataset, folder_of, freeze, verify
from labeling.models import PreferenceDataset, Project, Round
from tests import factories
from tests.labeling import judged


@pytest.fixture
def round(project: Project, ann: User, bo: User) -> Round:
    return judged.compared_round(project, [ann, bo], [[4, 2], [-1, -3], [None, 1], [2, 1]])


def export(*arguments: str) -> str:
    out = StringIO()
    call_command("export_preferences", *arguments, stdout=out)
    return out.getvalue()


def test_it_freezes_the_closed_rounds_and_writes_them(project: Project, round: Round, tmp_path: Path) -> None:
    target = tmp_path / "exported" / "one"
    said = export("--project", "Stories", "--output", str(target))
    dataset = PreferenceDataset.objects.get()
    assert (dataset.name, dataset.rule) == ("Round 1", "majority")
    verify(target, digest=dataset.digest)
    assert "labels: 8 read, 7 used" in said
    assert "left out: 1 both bad" in said
    assert "pairs: 3 train, 1 test" in said
    assert dataset.digest in said


def test_it_prints_one_json_object(project: Project, round: Round, tmp_path: Path) -> None:
    said = export(
        "--project", "stories", "--rounds", "1", "--rule", "each_label", "--dataset", "mine",
        "--output", str(tmp_path / "one"), "--json",
    )  # fmt: skip
    found = json.loads(said)
    assert (found["dataset"], found["rule"]) == ("mine", "each_label")
    assert found["tables"]["pairs"] == {"train": 5, "test": 2}
    assert found["labels"]["left_out"] == {"both bad": 1}


def test_it_copies_a_dataset_that_is_frozen_already(project: Project, round: Round, tmp_path: Path) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    export("--dataset", "first", "--output", str(tmp_path / "one"))
    verify(tmp_path / "one", digest=dataset.digest)
    assert PreferenceDataset.objects.count() == 1


def test_it_finds_a_free_name_each_time(project: Project, round: Round, tmp_path: Path) -> None:
    export("--project", "Stories", "--output", str(tmp_path / "one"))
    export("--project", "Stories", "--output", str(tmp_path / "two"))
    assert [dataset.name for dataset in PreferenceDataset.objects.all()] == ["Round 1", "Round 1 (2)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "none"], "no dataset 'none'"),
        (["--project", "None"], "no project 'None'. Known: Stories"),
        (["--project", "Stories", "--rounds", "1", "7"], "no round 7"),
        ([], "Name the project"),
    ],
)
def test_it_says_what_is_not_there(
    project: Project, round: Round, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        export(*arguments, "--output", str(tmp_path / "one"))
    assert list(tmp_path.glob("one*")) == []


def test_it_refuses_an_open_round(project: Project, round: Round, tmp_path: Path) -> None:
    round.state = Round.State.OPEN
    round.save(update_fields=["state"])
    with pytest.raises(CommandError, match="not closed"):
        export("--project", "Stories", "--rounds", "1", "--output", str(tmp_path / "one"))


def test_it_never_writes_over_a_folder(project: Project, round: Round, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(CommandError, match="exists"):
        export("--project", "Stories", "--output", str(tmp_path / "one"))
    assert not PreferenceDataset.objects.exists()


def test_it_refuses_a_dataset_whose_files_were_changed(
    project: Project, round: Round, tmp_path: Path
) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    (folder_of(dataset) / "pairs" / "train.jsonl").write_text("{}\n")
    with pytest.raises(CommandError, match="was changed after the dataset was frozen"):
        export("--dataset", "first", "--output", str(tmp_path / "one"))
    assert not (tmp_path / "one").exists()


def test_it_refuses_a_dataset_that_cannot_be_read(project: Project, round: Round, tmp_path: Path) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    (folder_of(dataset) / "manifest.json").unlink()
    (folder_of(dataset) / "manifest.json").mkdir()
    with pytest.raises(DamagedDataset, match=r"manifest\.json of .* cannot be read: Is a directory"):
        verify(folder_of(dataset), digest=dataset.digest)
    with pytest.raises(CommandError, match="cannot be read"):
        export("--dataset", "first", "--output", str(tmp_path / "one"))


def test_a_full_disk_is_one_line(
    project: Project, round: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: str, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", target)

    freeze(project=project, rounds=[round], rule="majority", name="first")
    copytree = shutil.copytree

    def copy_all(source: str, target: str, *rest: object) -> str:
        return copytree(source, target, copy_function=fail)

    monkeypatch.setattr(shutil, "copytree", copy_all)
    with pytest.raises(CommandError, match="could not be written: No space left on device: ") as refusal:
        export("--dataset", "first", "--output", str(tmp_path / "one"))
    assert len(str(refusal.value)) < 500
    assert list(tmp_path.glob("*one*")) == []


def test_a_name_that_no_disk_holds_is_refused(project: Project, round: Round, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="could not be written: File name too long"):
        export("--project", "Stories", "--output", str(tmp_path / ("a" * 300)))


def test_it_asks_for_the_project_when_two_have_the_name(
    project: Project, round: Round, ann: User, tmp_path: Path
) -> None:
    freeze(project=project, rounds=[round], rule="majority", name="first")
    other = factories.make_project("Other")
    freeze(
        project=other,
        rounds=[judged.compared_round(other, [ann], [[3], [1]])],
        rule="majority",
        name="first",
    )
    with pytest.raises(CommandError, match="name one with --project"):
        export("--dataset", "first", "--output", str(tmp_path / "one"))
    export("--dataset", "first", "--project", "Other", "--output", str(tmp_path / "one"))
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["project"] == "other"
