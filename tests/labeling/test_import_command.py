"""`manage.py import_data`: progress on stderr, a report, and a status that says whether it came in."""

import io
import json
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from labeling.models import Project, Prompt
from tests.labeling.test_imports import jsonl

GOOD = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def run(*args: object) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("import_data", *map(str, args), stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_it_imports_and_says_what_came_of_it(project: Project, tmp_path: Path) -> None:
    out, err = run(jsonl(tmp_path, GOOD), "--project", project.name)
    assert "prompts: 1 new" in out
    assert "comparisons: 1 new" in out
    assert "reading" in err and "storing" in err
    assert Prompt.objects.count() == 1


def test_the_project_can_be_named_by_its_slug(project: Project, tmp_path: Path) -> None:
    run(jsonl(tmp_path, GOOD), "--project", project.slug)
    assert project.prompts.count() == 1


def test_json_is_one_object_and_nothing_else(project: Project, tmp_path: Path) -> None:
    out, _ = run(jsonl(tmp_path, GOOD), "--project", project.name, "--json")
    report = json.loads(out)
    assert report["stored"] is True
    assert report["comparisons"] == {"created": 1, "known": 0}


def test_a_refused_row_gives_a_status_and_its_line(project: Project, tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as stop:
        call_command(
            "import_data",
            str(jsonl(tmp_path, GOOD, {**GOOD, "margin": "x"})),
            project=project.name,
            stdout=out,
            stderr=err,
        )
    assert stop.value.code == 1
    assert "line 2: `margin` is no number: 'x'" in out.getvalue()
    assert "Nothing was stored. Correct the rows that were refused, or add --keep-good" in err.getvalue()
    assert not Prompt.objects.exists()


def test_keeping_the_good_rows_is_not_advised_where_there_are_none(project: Project, tmp_path: Path) -> None:
    err = io.StringIO()
    with pytest.raises(SystemExit):
        call_command(
            "import_data", str(jsonl(tmp_path, {**GOOD, "margin": "x"})), "--keep-good",
            project=project.name, stdout=io.StringIO(), stderr=err,
        )  # fmt: skip
    assert "Nothing was stored. Correct the rows that were refused.\n" in err.getvalue()


def test_a_refused_file_in_json_is_still_one_object(project: Project, tmp_path: Path) -> None:
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command(
            "import_data",
            str(jsonl(tmp_path, GOOD, {})),
            "--json",
            project=project.name,
            stdout=out,
            stderr=io.StringIO(),
        )
    assert json.loads(out.getvalue())["refused"] == 1


def test_good_rows_are_kept_on_request(project: Project, tmp_path: Path) -> None:
    out, _ = run(jsonl(tmp_path, GOOD, {}), "--project", project.name, "--keep-good")
    assert "refused: 1 of 2 rows" in out
    assert Prompt.objects.count() == 1


def test_a_missing_project_is_made_only_on_request(db: None, tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD)
    with pytest.raises(CommandError, match="no project 'New one'"):
        run(path, "--project", "New one")
    run(path, "--project", "New one", "--create")
    assert Project.objects.get().slug == "new-one"


def test_a_refused_file_makes_no_project(db: None, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"")
    with pytest.raises(CommandError, match=r"empty\.jsonl: it is empty"):
        run(path, "--project", "New one", "--create")
    assert not Project.objects.exists()


def test_a_form_can_be_named(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("prompt\nanother\n")
    run(path, "--project", project.name, "--form", "prompts-txt")
    assert Prompt.objects.count() == 2
