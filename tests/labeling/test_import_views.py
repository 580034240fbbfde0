"""The pages of imports: upload, watch, read what came of it."""

import doctest
import fcntl
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from labeling.imports import background, import_file
from labeling.models import Import, Label, Project, Prompt
from labeling.views import imports

GOOD = {"prompt": "Q", "chosen": "a", "rejected": "b"}


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture(autouse=True)
def _own_folder(settings: Any, tmp_path: Path) -> None:
    settings.VAR_DIR = tmp_path


def upload(*rows: Any, name: str = "pairs.jsonl", **more: Any) -> dict[str, Any]:
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return {"file": SimpleUploadedFile(name, content.encode()), **more}


def page(project: Project) -> str:
    return reverse("import", args=[project.slug])


def an_import(project: Project, **more: Any) -> Import:
    return Import.objects.create(project=project, name="x.jsonl", upload="0" * 32, **more)


@pytest.mark.django_db(transaction=True)
def test_a_file_comes_in_and_the_next_page_says_what_came_of_it(
    manager: Client, project: Project, tmp_path: Path
) -> None:
    response = manager.post(page(project), upload(GOOD), follow=True)
    assert response.status_code == 200
    assert b"Every row came in" in response.content
    assert b"new comparison" in response.content
    assert Label.objects.count() == 1
    found = Import.objects.get()
    assert (found.state, found.report["stored"]) == (Import.State.COMPLETE, True)
    assert list((tmp_path / "imports").iterdir()) == []


def test_the_examples_of_the_page_hold() -> None:
    assert doctest.testmod(imports).failed == 0


@pytest.mark.django_db(transaction=True)
def test_the_report_says_how_many_prompts_are_held_out(manager: Client, project: Project) -> None:
    project.test_percent = 50
    project.save(update_fields=["test_percent"])
    rows = [{"prompt": f"Question {number}"} for number in range(20)]
    response = manager.post(page(project), upload(*rows), follow=True)
    held_out = Prompt.objects.filter(split=Prompt.Split.TEST).count()
    assert 0 < held_out < 20
    said = response.content.decode()
    assert f"<b>{held_out}</b><span>of them held out for testing</span>" in said
    assert "20 rows read in less than a second" in said


@pytest.mark.django_db(transaction=True)
def test_the_report_counts_no_held_out_prompts_that_others_brought(manager: Client, project: Project) -> None:
    manager.post(page(project), upload({"prompt": "Mine"}))
    found = Import.objects.get()
    Prompt.objects.create(project=project, messages=[], digest="0" * 64, split=Prompt.Split.TEST)
    Prompt.objects.update(created_at=found.created_at)
    assert "held out" not in manager.get(found.get_absolute_url()).content.decode()


@pytest.mark.django_db(transaction=True)
def test_refused_rows_are_listed_and_nothing_is_stored(manager: Client, project: Project) -> None:
    bad = {**GOOD, "margin": "<script>alert(1)</script>"}
    response = manager.post(page(project), upload(GOOD, bad), follow=True)
    assert b"Nothing was stored" in response.content
    assert b"&lt;script&gt;" in response.content
    assert b"<script>alert" not in response.content
    assert Import.objects.get().state == Import.State.REFUSED
    assert not Prompt.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_good_rows_are_kept_when_the_box_is_ticked(manager: Client, project: Project) -> None:
    response = manager.post(page(project), upload(GOOD, "{", keep_good="on"), follow=True)
    assert b"1 of 2 rows came in" in response.content
    assert Prompt.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_an_unreadable_file_says_why(manager: Client, project: Project) -> None:
    response = manager.post(page(project), upload("PAR1", name="x.parquet"), follow=True)
    assert b"it is a Parquet file" in response.content
    assert Import.objects.get().state == Import.State.REFUSED


@pytest.mark.django_db(transaction=True)
def test_a_second_import_of_the_same_file_says_that_everything_is_known(
    manager: Client, project: Project
) -> None:
    manager.post(page(project), upload(GOOD))
    response = manager.post(page(project), upload(GOOD), follow=True)
    assert b"known already. Nothing was added" in response.content


@pytest.mark.django_db(transaction=True)
def test_an_unexpected_failure_is_told_and_stores_nothing(
    manager: Client, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labeling.imports.spool.Spool.add", fail)
    response = manager.post(page(project), upload(GOOD), follow=True)
    assert b"No space left on device" in response.content
    assert Import.objects.get().state == Import.State.FAILED
    assert not Prompt.objects.exists()


@pytest.mark.parametrize("content", [b"", None])
def test_no_file_or_an_empty_one_is_refused_on_the_page(
    manager: Client, project: Project, content: Any
) -> None:
    data = {} if content is None else {"file": SimpleUploadedFile("x.txt", content)}
    response = manager.post(page(project), data)
    assert response.status_code == 422
    assert b"errorlist" in response.content
    assert not Import.objects.exists()


def test_a_file_over_the_limit_is_refused_on_the_page(
    manager: Client, project: Project, settings: Any
) -> None:
    settings.IMPORT_MAX_BYTES = 1_000_000
    response = manager.post(page(project), upload("x" * 1_000_000))
    assert response.status_code == 422
    assert b"at most 1 MB" in response.content


def test_an_unknown_form_is_refused_on_the_page(manager: Client, project: Project) -> None:
    assert manager.post(page(project), upload(GOOD, form="xml")).status_code == 422


def test_progress_is_shown_while_somebody_works_on_it(
    manager: Client, project: Project, tmp_path: Path
) -> None:
    found = an_import(project, done=250_000, total=1_000_000)
    path = tmp_path / "imports" / found.upload
    path.parent.mkdir()
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        response = manager.get(found.get_absolute_url(), headers={"HX-Request": "true"})
    assert b"<html" not in response.content
    assert b'hx-trigger="every 1s"' in response.content
    assert b'value="250000" max="1000000"' in response.content


@pytest.mark.parametrize("state", ["reading", "storing"])
def test_an_import_whose_server_died_is_marked_interrupted(
    manager: Client, project: Project, tmp_path: Path, state: str
) -> None:
    found = an_import(project, state=state)
    path = tmp_path / "imports" / found.upload
    path.parent.mkdir()
    path.write_bytes(b"left over")  # and nobody holds it
    response = manager.get(found.get_absolute_url())
    assert b"Interrupted" in response.content
    assert b"The server stopped" in response.content
    found.refresh_from_db()
    assert found.state == Import.State.INTERRUPTED
    assert not path.exists()


def test_the_list_of_imports_says_it_too(manager: Client, project: Project) -> None:
    an_import(project)
    assert b"Interrupted" in manager.get(page(project)).content


@pytest.mark.django_db(transaction=True)
def test_the_page_answers_while_a_long_import_goes_on(
    manager: Client, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(**kwargs: Any) -> Any:
        reading.set()
        assert go_on.wait(20)
        return import_file(**kwargs)

    monkeypatch.setattr(background, "import_file", slow)
    monkeypatch.setattr(background, "PATIENCE", 0.05)
    try:
        address = manager.post(page(project), upload(GOOD))["Location"]
        assert reading.wait(20)
        assert b"Reading" in manager.get(address).content
    finally:
        go_on.set()
        for thread in threading.enumerate():
            if thread.name.startswith("import "):
                thread.join(20)
    assert b"Every row came in" in manager.get(address).content


# Who may not, and how not


def test_a_rater_an_outsider_and_a_visitor_see_neither_page(
    client: Client, project: Project, ann: User, zed: User
) -> None:
    found = an_import(project, state="complete")
    for address in (page(project), found.get_absolute_url()):
        assert client.get(address).status_code == 302
        for person in (ann, zed):
            client.force_login(person)
            assert client.get(address).status_code == 404
            assert client.post(address, upload(GOOD)).status_code in (404, 405)
        client.logout()
    assert not Prompt.objects.exists()


def test_a_bad_id_is_not_found(manager: Client) -> None:
    assert manager.get(reverse("import_report", args=[999])).status_code == 404
    assert manager.get(reverse("import", args=["nowhere"])).status_code == 404


def test_wrong_methods_are_refused(manager: Client, project: Project) -> None:
    found = an_import(project, state="complete")
    assert manager.delete(page(project)).status_code == 405
    assert manager.post(found.get_absolute_url()).status_code == 405
