"""A constitution: its versions, what is asked by it, and the page that edits it without a script."""

import doctest
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import constitutions
from labeling.constitutions import InvalidConstitution, in_full, save, starting
from labeling.forms import constitutions as forms
from labeling.models import Project


def test_the_examples_in_the_docstrings_hold() -> None:
    for module in (constitutions, forms):
        tested = doctest.testmod(module)
        assert tested.attempted and not tested.failed


def test_a_change_makes_a_version_and_no_change_makes_none(project: Project) -> None:
    first = save(project=project, principles=[{"text": "Be kind."}])
    same = save(project=project, principles=[{"text": " Be kind. ", "critique": " "}, {"text": ""}])
    second = save(project=project, principles=[{"text": "Be brief."}], note="shorter")
    assert (first.version, same.pk, second.version) == (1, first.pk, 2)
    first.refresh_from_db()
    assert first.principles == [{"text": "Be kind."}]
    assert constitutions.latest(project) == second


@pytest.mark.parametrize(
    ("principles", "why"),
    [
        ([], "at least one principle"),
        ([{"text": "", "critique": "Why?"}], "no words of its own"),
        ([{"text": "a\0b"}], "NUL"),
        ([{"text": "x" * 2001}], "at most 2,000"),
        ([{"text": "Be kind."}, {"text": "Be kind."}], "twice"),
        ([{"text": f"Be {n}."} for n in range(65)], "at most 64"),
    ],
)
def test_what_is_no_constitution_is_refused_with_the_reason(
    principles: Any, why: str, project: Project
) -> None:
    with pytest.raises(InvalidConstitution, match=why):
        save(project=project, principles=principles)
    assert not project.constitutions.exists()


def test_requests_are_made_from_the_text_until_somebody_writes_their_own() -> None:
    for principle in starting():
        asked = in_full(principle)
        assert all(principle["text"] in asked[part] for part in ("critique", "revision", "comparison"))
    own = in_full({"text": "Use {text} braces.", "revision": "Again."})
    assert own["revision"] == "Again."
    assert "Use {text} braces." in own["critique"]


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


def edit_page(project: Project) -> str:
    return reverse("constitution_edit", args=[project.slug])


def texts_in(answer: Any) -> list[str]:
    return [text.value() for _, text, _, _ in answer.context["form"].principles()]


def test_a_project_begins_with_our_principles_and_saving_them_makes_version_1(
    manager: Client, project: Project
) -> None:
    page = manager.get(reverse("constitution", args=[project.slug]))
    assert "Not adopted yet" in page.content.decode()
    form = manager.get(edit_page(project))
    texts = texts_in(form)
    assert texts == list(constitutions.STARTING)
    data = {f"text_{row}": text for row, text in enumerate(texts)} | {"do": "save", "note": "to begin"}
    assert manager.post(edit_page(project), data).status_code == 302
    made = project.constitutions.get()
    assert (made.version, made.note, len(made.principles)) == (1, "to begin", len(texts))
    page = manager.get(reverse("constitution", args=[project.slug]))
    assert "to begin" in page.content.decode()


def test_buttons_move_add_and_remove_rows_and_store_nothing(manager: Client, project: Project) -> None:
    data = {"text_0": "a", "text_1": "b", "critique_1": "Why b?", "note": "why"}
    for action, wanted in (
        ("up-2", ["b", "a"]),
        ("down-1", ["b", "a"]),
        ("remove-1", ["b"]),
        ("add", ["a", "b", ""]),
        ("up-1", ["a", "b"]),
        ("up-9", ["a", "b"]),
        ("nonsense", ["a", "b"]),
    ):
        answer = manager.post(edit_page(project), data | {"do": action})
        assert (answer.status_code, texts_in(answer)) == (200, wanted), action
        assert answer.context["form"]["note"].value() == "why"
    moved = manager.post(edit_page(project), data | {"do": "up-2"})
    assert moved.context["form"]["critique_0"].value() == "Why b?"
    assert not project.constitutions.exists()


def test_a_refused_edit_keeps_what_was_written(manager: Client, project: Project) -> None:
    answer = manager.post(edit_page(project), {"text_0": "", "critique_0": "Why?", "do": "save"})
    assert answer.status_code == 422
    assert "no words of its own" in answer.content.decode()
    assert answer.context["form"]["critique_0"].value() == "Why?"


def test_hostile_words_are_only_words(manager: Client, project: Project) -> None:
    save(project=project, principles=[{"text": "<script>alert(1)</script>"}])
    for name in ("constitution", "constitution_edit"):
        page = manager.get(reverse(name, args=[project.slug])).content.decode()
        assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_an_older_version_can_be_read_and_one_that_is_not_there_cannot(
    manager: Client, project: Project
) -> None:
    save(project=project, principles=[{"text": "Old words."}])
    save(project=project, principles=[{"text": "New words."}])
    address = reverse("constitution", args=[project.slug])
    assert "New words." in manager.get(address).content.decode()
    old = manager.get(address, {"version": 1}).content.decode()
    assert "Old words." in old and "an older version" in old
    assert manager.get(address, {"version": 7}).status_code == 404


def test_only_managers_see_it(client: Client, project: Project, ann: User) -> None:
    client.force_login(ann)
    for address in (reverse("constitution", args=[project.slug]), edit_page(project)):
        assert client.get(address).status_code == 404
    assert client.post(edit_page(project), {"text_0": "Mine.", "do": "save"}).status_code == 404
    assert not project.constitutions.exists()
