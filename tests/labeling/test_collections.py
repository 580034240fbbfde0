"""Demonstrations, single judgements and texts: from a file into a frozen dataset, and what is refused."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from labeling.datasets import folder_of, freeze, verify
from labeling.datasets.errors import InvalidFreeze
from labeling.imports import ImportReport, UnreadableFile, import_file
from labeling.imports.staging import discard_leftovers, staged
from labeling.models import Collection, Completion, Example, Label, PreferenceDataset, Project, Prompt, Round
from labeling.prompts import split_of
from tests import factories
from tests.labeling import judged

DEMONSTRATION = {"prompt": "Name a colour.", "completion": "Blue."}
FORMS: dict[str, tuple[str, str, str]] = {
    "plain": ("a.jsonl", json.dumps(DEMONSTRATION), "demonstrations"),
    "conversational": (
        "a.jsonl",
        json.dumps(
            {
                "prompt": [{"role": "user", "content": "Name a colour."}],
                "completion": [{"role": "assistant", "content": "Blue."}],
            }
        ),
        "demonstrations",
    ),
    "messages": (
        "a.jsonl",
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "Name a colour."},
                    {"role": "assistant", "content": "Blue."},
                ]
            }
        ),
        "demonstrations",
    ),
    "csv": ("a.csv", "prompt,completion\nName a colour.,Blue.", "demonstrations"),
    "judged": ("a.jsonl", json.dumps(DEMONSTRATION | {"label": True}), "unpaired"),
    "judged csv": ("a.csv", "prompt;completion;label\nName a colour.;Blue.;Good", "unpaired"),
    "text": ("a.jsonl", json.dumps({"text": "The sky is blue."}), "texts"),
    "text csv": ("a.csv", "text,url\nThe sky is blue.,here", "texts"),
}


def bring(project: Project, tmp_path: Path, content: str, name: str = "a.jsonl", **how: Any) -> ImportReport:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return import_file(project=project, path=path, **how)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def frozen(project: Project, *collections: Collection, name: str = "all") -> dict[str, list[dict[str, Any]]]:
    """Rows of a dataset of these collections, by table, both splits."""
    dataset = freeze(project=project, rounds=[], collections=collections, rule="each_label", name=name)
    folder = folder_of(dataset)
    verify(folder, digest=dataset.digest)
    return {
        table: [
            json.loads(line)
            for split in ("train", "test")
            if (folder / table / f"{split}.jsonl").exists()
            for line in (folder / table / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for table in dataset.manifest["tables"]
    }


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_recognised_and_comes_out_of_a_frozen_dataset(
    form: str, project: Project, tmp_path: Path
) -> None:
    name, content, kind = FORMS[form]
    report = bring(project, tmp_path, content, name)
    collection = Collection.objects.get()
    assert (report.stored, report.examples.created, report.collection) == (True, 1, collection.pk)
    assert (collection.project, collection.kind, collection.rows) == (project, kind, 1)
    assert not Round.objects.exists()
    rows = frozen(project, collection)
    prompt = [{"role": "user", "content": "Name a colour."}]
    completion = [{"role": "assistant", "content": "Blue."}]
    expected: dict[str, Any] = {
        "demonstrations": {"prompt": prompt, "completion": completion},
        "unpaired": {"prompt": prompt, "completion": completion, "label": True},
        "texts": {"text": "The sky is blue."},
    }
    assert rows.pop("prompts", []) == ([] if kind == "texts" else [{"prompt": prompt}])
    assert rows == {kind: [expected[kind]]}
    assert PreferenceDataset.objects.get().source == "import"


def test_texts_of_a_plain_file_are_parted_by_blank_lines(project: Project, tmp_path: Path) -> None:
    content = "\n\nOne.\nStill one.\n \n\r\nTwo.\r\nMore.\n"
    report = bring(project, tmp_path, content, "book.txt", form="texts-txt")
    assert report.rows == 2
    assert [example.text for example in Example.objects.all()] == ["One.\nStill one.", "Two.\nMore."]


def test_rows_of_our_own_ratings_are_no_demonstrations(project: Project, tmp_path: Path) -> None:
    bring(project, tmp_path, lines(DEMONSTRATION | {"rating": 1}))
    assert not Collection.objects.exists()
    assert Prompt.objects.count() == 1


def test_what_is_known_already_is_counted_and_stored_once(project: Project, tmp_path: Path) -> None:
    said = [DEMONSTRATION | {"label": label} for label in (True, False, True)]
    first = bring(project, tmp_path, lines(*said))
    assert (first.examples.created, first.repeated) == (2, 1)
    again = bring(project, tmp_path, lines(*said[:2], DEMONSTRATION | {"completion": "Red.", "label": True}))
    assert (again.examples.created, again.examples.known) == (1, 2)
    assert [collection.rows for collection in Collection.objects.order_by("pk")] == [2, 1]
    assert Completion.objects.count() == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q", "completion": ""}, "not a completion"),
        ({"prompt": "Q"}, "no completion"),
        ({"completion": "A"}, "no prompt"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "not a conversation"),
        ({"prompt": "Q", "completion": "A\0"}, "not a completion"),
        ({"prompt": 7, "completion": "A"}, "not a prompt"),
    ],
)
def test_a_bad_demonstration_is_refused_with_its_reason(
    project: Project, tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    report = bring(project, tmp_path, lines(DEMONSTRATION, row))
    assert (report.stored, dict(report.refused_by_reason)) == (False, {reason: 1})
    assert report.refusals[0].line == 2
    assert not Example.objects.exists()
    kept = bring(project, tmp_path, lines(DEMONSTRATION, row), keep_good=True)
    assert (kept.stored, kept.examples.created) == (True, 1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": 1}, "bad label"),
        ({"label": "true"}, "bad label"),
        ({"label": None}, "no label"),
    ],
)
def test_a_label_is_true_or_false(project: Project, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = DEMONSTRATION | {"label": False}
    assert dict(bring(project, tmp_path, lines(good, good | row)).refused_by_reason) == {reason: 1}


@pytest.mark.parametrize(
    "row", [{"text": " \n"}, {"text": 7}, {"text": "x" * 200_001}, {"text": None}, {"no": 1}]
)
def test_a_bad_text_is_refused(project: Project, tmp_path: Path, row: dict[str, Any]) -> None:
    report = bring(project, tmp_path, lines({"text": "Good."}, row), keep_good=True)
    assert (report.refused, report.examples.created) == (1, 1)


def test_a_table_without_any_known_column_is_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no column `prompt` and no `text`"):
        bring(project, tmp_path, "body\nThe sky is blue.", "a.csv")


def test_the_split_goes_by_prompt_and_texts_by_their_words(project: Project, tmp_path: Path) -> None:
    project.test_percent = 50
    project.save()
    bring(project, tmp_path, lines(*({"prompt": f"Q{n}", "completion": "A"} for n in range(20))))
    bring(project, tmp_path, lines(*({"text": f"Text {n}."} for n in range(20))))
    dataset = freeze(
        project=project, rounds=[], collections=list(Collection.objects.all()), rule="each_label", name="x"
    )
    tables = dataset.manifest["tables"]
    for table in ("demonstrations", "texts"):
        assert sum(tables[table].values()) == 20
        assert min(tables[table].values()) >= 4
    for example in Example.objects.filter(prompt__isnull=False).select_related("prompt"):
        assert example.prompt and example.prompt.split == split_of(example.prompt.messages, 50)
    assert {example.split for example in Example.objects.exclude(text="")} == {"train", "test"}


def test_rounds_and_files_freeze_together_and_equal_ones_to_equal_bytes(
    project: Project, ann: User, tmp_path: Path
) -> None:
    bring(project, tmp_path, lines(DEMONSTRATION))
    collection = Collection.objects.get()
    round = judged.compared_round(project, [ann], [[2], [-1]])
    both = [
        freeze(project=project, rounds=[round], collections=[collection], rule="majority", name=name)
        for name in ("one", "two")
    ]
    assert both[0].digest == both[1].digest
    assert set(both[0].manifest["tables"]) == {"pairs", "demonstrations", "prompts"}
    assert both[0].source == "human"
    assert list(both[0].collections.all()) == [collection]
    assert both[0].manifest["parents"]["collections"][0]["rows"] == 1
    alone = freeze(project=project, rounds=[round], rule="majority", name="three")
    assert "collections" not in alone.manifest["parents"]


def test_a_collection_of_another_project_is_refused(project: Project, tmp_path: Path) -> None:
    other = factories.make_project("Elsewhere")
    bring(other, tmp_path, lines(DEMONSTRATION))
    with pytest.raises(InvalidFreeze, match="another project"):
        frozen(project, Collection.objects.get())


def test_what_a_killed_import_left_is_deleted(project: Project, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(project) as hidden:
        bring(hidden, tmp_path, lines(DEMONSTRATION))
        assert Example.objects.exists()
        raise KeyboardInterrupt
    discard_leftovers(project)
    left = (Example, Collection, Prompt, Completion, Label)
    assert [model.objects.count() for model in left] == [0] * len(left)


def test_a_manager_freezes_what_a_file_brought_in(
    client: Client, mia: User, project: Project, tmp_path: Path
) -> None:
    client.force_login(mia)
    bring(project, tmp_path, lines(DEMONSTRATION), "shown.jsonl")
    address = reverse("dataset_new", args=[project.slug])
    page = client.get(address).content.decode()
    assert "Demonstrations of shown.jsonl: 1 row" in page
    assert "What files brought in" in page
    posted = {"rule": "majority", "name": "shown"}
    refused = client.post(address, posted)
    assert refused.status_code == 422
    answer = client.post(address, {**posted, "collections": [Collection.objects.get().pk]}, follow=True)
    shown = answer.content.decode()
    assert "demonstrations/train.jsonl" in shown or "demonstrations/test.jsonl" in shown
    assert "Imported" in shown
    assert "Majority" not in shown


def test_the_command_exports_what_a_file_brought_in(project: Project, tmp_path: Path) -> None:
    bring(project, tmp_path, lines(DEMONSTRATION), "shown.jsonl")
    out = tmp_path / "out"
    call_command(
        "export_preferences", project=project.slug, files=["shown.jsonl"], output=out, stdout=StringIO()
    )
    assert set(json.loads((out / "manifest.json").read_text())["tables"]) == {"demonstrations", "prompts"}
    with pytest.raises(CommandError, match="No file other"):
        call_command("export_preferences", project=project.slug, files=["other.jsonl"], output=tmp_path / "x")
