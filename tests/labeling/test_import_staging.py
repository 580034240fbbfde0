"""An import is stored out of sight in short transactions, and shown at once: whole, or never."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from labeling.imports import Progress, UnreadableFile, import_file, run, spool
from labeling.imports.staging import discard_leftovers
from labeling.models import Completion, Label, Policy, Project, Prompt, Protocol, Round
from labeling.prompts import add_prompts
from tests import factories
from tests.real_server import ROOT, environment, prepare


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 10)


@pytest.fixture(autouse=True)
def _small_batches_that_all_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BATCH", 3)
    monkeypatch.setattr(run, "TELL_EVERY", 0.0)


def write_pairs(path: Path, number: int) -> Path:
    rows = ({"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(number))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored_anywhere() -> int:
    return sum(model.objects.count() for model in (Prompt, Completion, Label, Round, Policy, Protocol))


@pytest.mark.django_db(transaction=True)
def test_between_two_batches_no_transaction_is_open_and_nothing_is_seen(
    project: Project, pairs: Path
) -> None:
    seen: list[tuple[int, bool, int, int]] = []

    def look(now: Progress) -> None:
        if now.phase == "storing":
            seen.append(
                (now.done, connection.in_atomic_block, project.prompts.count(), project.rounds.count())
            )

    import_file(project=project, path=pairs, progress=look)
    assert seen == [(done, False, 0, 0) for done in (0, 3, 6, 9)]
    assert (project.prompts.count(), project.rounds.count(), Label.objects.count()) == (10, 1, 10)
    assert Project.objects.count() == 1


def test_what_failed_midway_is_gone_and_the_next_import_is_whole(project: Project, pairs: Path) -> None:
    def fail(now: Progress) -> None:
        if now.phase == "storing" and now.done >= 6:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        import_file(project=project, path=pairs, progress=fail)
    assert stored_anywhere() == 0 and Project.objects.count() == 1
    assert import_file(project=project, path=pairs).comparisons.created == 10


def test_a_prompt_that_came_in_meanwhile_stays_and_gets_the_completions(
    project: Project, pairs: Path
) -> None:
    def add(now: Progress) -> None:
        if now.phase == "storing" and now.done == 9:
            add_prompts(project=project, conversations=[[{"role": "user", "content": "Q1"}]])

    import_file(project=project, path=pairs, progress=add)
    twin = project.prompts.get(messages__0__content="Q1")
    assert {c.text for c in twin.completions.all()} == {"good 1", "bad 1"}
    assert (project.prompts.count(), Label.objects.count()) == (10, 10)
    assert twin.tasks.count() == 1


def test_a_second_file_of_the_same_name_shares_its_policy_and_protocol(
    project: Project, pairs: Path, tmp_path: Path
) -> None:
    import_file(project=project, path=pairs)
    more = write_pairs(tmp_path / "more.jsonl", 12)
    report = import_file(project=project, path=more, name="pairs.jsonl")
    assert (report.prompts.known, report.prompts.created) == (10, 2)
    assert (Policy.objects.count(), Protocol.objects.count()) == (1, 1)
    assert [round.number for round in project.rounds.all()] == [1, 2]
    assert {c.policy for c in Completion.objects.all()} == {Policy.objects.get()}


def test_a_change_of_the_held_out_share_meanwhile_refuses_the_import(project: Project, pairs: Path) -> None:
    def change(now: Progress) -> None:
        Project.objects.filter(pk=project.pk).update(test_percent=50)

    with pytest.raises(UnreadableFile, match="held-out prompts was changed meanwhile"):
        import_file(project=project, path=pairs, progress=change)
    assert stored_anywhere() == 0


def test_nobody_sees_the_hidden_project_not_even_who_may_do_everything(db: None) -> None:
    hidden = Project.objects.create(name="_import-into-7", slug="_import-into-7")
    root = User.objects.create_superuser("root")
    assert hidden not in Project.objects.visible_to(root)
    assert hidden not in Project.objects.managed_by(root)
    assert factories.make_project() in Project.objects.visible_to(root)


@pytest.mark.slow
def test_what_a_killed_import_left_is_never_seen_and_the_next_one_clears_it(tmp_path: Path) -> None:
    env = environment(database=f"sqlite:///{tmp_path / 'db.sqlite3'}", var=tmp_path)
    prepare(env)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 3000)
    command = [sys.executable, "manage.py", "import_data", str(pairs), "--project", "P", "--create"]
    child = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("storing") and "  0 %" not in line:
            child.send_signal(signal.SIGKILL)
            break
    child.wait(60)

    def rows(sql: str) -> Any:
        with sqlite3.connect(tmp_path / "db.sqlite3") as database:
            return database.execute(sql).fetchone()[0]

    shown = "SELECT count(*) FROM labeling_prompt p JOIN labeling_project o ON o.id = p.project_id"
    assert rows(f"{shown} WHERE o.name = 'P'") == 0
    assert 0 < rows("SELECT count(*) FROM labeling_label") < 3000
    again = subprocess.run(
        [*command, "--json"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout)["comparisons"] == {"created": 3000, "known": 0}
    assert rows(f"{shown} WHERE o.name = 'P'") == rows("SELECT count(*) FROM labeling_prompt") == 3000
    assert rows("SELECT count(*) FROM labeling_label") == 3000
    assert rows("SELECT count(*) FROM labeling_project") == 1


def test_leftovers_are_cleared_without_another_import(project: Project, pairs: Path) -> None:
    hidden = Project.objects.create(name=f"_import-into-{project.pk}", slug=f"_import-into-{project.pk}")
    factories.make_policy(hidden)
    add_prompts(project=hidden, conversations=[[{"role": "user", "content": "Q1"}]])
    discard_leftovers(project)
    assert stored_anywhere() == 0 and list(Project.objects.all()) == [project]
