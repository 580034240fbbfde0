"""The manager's pages of a dataset, over HTTP: freeze, look at, download."""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterable
from typing import Any, cast

import pytest
from django.contrib.auth.models import User
from django.http import FileResponse, StreamingHttpResponse
from django.test import Client
from django.urls import reverse

from labeling.datasets import folder_of, freeze, verify
from labeling.models import PreferenceDataset, Project, Round
from tests import factories
from tests.labeling import judged


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def round(project: Project, ann: User, bo: User) -> Round:
    return judged.compared_round(project, [ann, bo], [[4, 2], [-1, -3], [None, 1], [2, 1]])


@pytest.fixture
def dataset(project: Project, round: Round) -> PreferenceDataset:
    return freeze(project=project, rounds=[round], rule="majority", name="First & best")


def body(response: Any) -> bytes:
    return b"".join(cast(Iterable[bytes], response.streaming_content))


def pages(dataset: PreferenceDataset) -> list[str]:
    return [
        reverse("dataset_new", args=[dataset.project.slug]),
        reverse("dataset", args=[dataset.pk]),
        reverse("dataset_zip", args=[dataset.pk]),
        reverse("dataset_file", args=[dataset.pk, "manifest.json"]),
    ]


@pytest.mark.parametrize("person", ["zed", "ann"])
def test_strangers_and_raters_find_none_of_it(
    client: Client, dataset: PreferenceDataset, zed: User, ann: User, person: str
) -> None:
    client.force_login({"zed": zed, "ann": ann}[person])
    assert [client.get(page).status_code for page in pages(dataset)] == [404] * 4
    assert client.post(pages(dataset)[0], {"name": "x"}).status_code == 404


def test_a_manager_of_another_project_finds_none_of_it(client: Client, dataset: PreferenceDataset) -> None:
    client.force_login(factories.make_user("eve", factories.make_project("Other"), "manager"))
    assert [client.get(page).status_code for page in pages(dataset)] == [404] * 4


def test_those_who_are_not_signed_in_are_asked_to(client: Client, dataset: PreferenceDataset) -> None:
    assert [client.get(page).status_code for page in pages(dataset)] == [302] * 4


def test_what_is_not_there_is_not_found(manager: Client, project: Project) -> None:
    missing: list[tuple[str, list[str]]] = [
        ("dataset_new", ["none"]),
        ("dataset", ["999"]),
        ("dataset_zip", ["999"]),
        ("dataset_file", ["999", "manifest.json"]),
    ]
    for name, args in missing:
        assert manager.get(reverse(name, args=args)).status_code == 404


def test_the_wrong_method_is_refused(manager: Client, dataset: PreferenceDataset) -> None:
    assert [manager.delete(page).status_code for page in pages(dataset)] == [405] * 4
    assert [manager.post(page).status_code for page in pages(dataset)[1:]] == [405] * 3


def test_a_round_is_frozen_from_the_forms_own_defaults(
    manager: Client, project: Project, round: Round
) -> None:
    address = reverse("dataset_new", args=[project.slug])
    form = manager.get(address).context["form"]
    response = manager.post(address, form.initial)
    made = PreferenceDataset.objects.get()
    assert response["Location"] == made.get_absolute_url()
    assert (made.name, made.rule, list(made.rounds.all())) == ("Round 1 dataset", "majority", [round])
    verify(folder_of(made), digest=made.digest)


def test_the_form_suggests_a_name_that_is_free(manager: Client, project: Project, round: Round) -> None:
    freeze(project=project, rounds=[round], rule="majority", name="Round 1 dataset")
    form = manager.get(reverse("dataset_new", args=[project.slug])).context["form"]
    assert form.initial["name"] == "Round 1 dataset (2)"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [([1, 2], "Rounds 1 to 2 dataset"), ([1, 3], "Rounds 1, 3 dataset"), ([2], "Round 2 dataset")],
)
def test_a_proposed_name_follows_the_rounds_that_are_chosen(
    manager: Client, project: Project, ann: User, chosen: list[int], expected: str
) -> None:
    rounds = {number: judged.compared_round(project, [ann], [[1], [2]]) for number in (1, 2, 3)}
    address = reverse("dataset_new", args=[project.slug])
    proposed = manager.get(address).context["form"].initial
    manager.post(address, {**proposed, "rounds": [rounds[number].pk for number in chosen]})
    assert PreferenceDataset.objects.get().name == expected


def test_a_name_that_was_written_stays_whatever_is_chosen(
    manager: Client, project: Project, round: Round, ann: User
) -> None:
    judged.compared_round(project, [ann], [[1], [2]])
    address = reverse("dataset_new", args=[project.slug])
    proposed = manager.get(address).context["form"].initial
    manager.post(address, {**proposed, "rounds": [round.pk], "name": "Mine"})
    assert PreferenceDataset.objects.get().name == "Mine"


def test_the_same_labels_frozen_again_name_the_dataset_that_holds_them(
    manager: Client, dataset: PreferenceDataset, round: Round
) -> None:
    again = manager.post(
        reverse("dataset_new", args=[dataset.project.slug]),
        {"rounds": [round.pk], "rule": "majority", "name": "again"},
        follow=True,
    ).content.decode()
    assert f'are in <a href="{dataset.get_absolute_url()}">First &amp; best</a> already' in again
    assert "already" not in manager.get(dataset.get_absolute_url()).content.decode()


def rated_round(project: Project, ann: User) -> Round:
    rated = judged.make_round(project, "rating")
    policy = factories.make_policy(project)
    for score in (1, 4):
        task = judged.make_task(rated, judged.make_prompt(project, f"Rate {score}."), ["A fox."], [policy])
        judged.say(task, ann, {"scores": {"overall": score}})
    return rated


def defaults_of(page: str) -> dict[str, list[str]]:
    """What a browser would send when nobody touches the form."""
    data: dict[str, list[str]] = {}
    for tag in re.findall(r"<input[^>]*>", page):
        given = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if given.get("type") not in ("checkbox", "radio") or " checked" in tag:
            data.setdefault(given["name"], []).append(given.get("value", ""))
    return data


@pytest.mark.parametrize("kind", ["comparison", "rating"])
def test_what_the_page_shows_can_be_frozen_without_a_change(
    manager: Client, project: Project, ann: User, kind: str
) -> None:
    rated_round(project, ann) if kind == "rating" else judged.compared_round(project, [ann], [[1], [2]])
    address = reverse("dataset_new", args=[project.slug])
    response = manager.post(address, defaults_of(manager.get(address).content.decode()))
    assert response.status_code == 302
    assert PreferenceDataset.objects.get().name == "Round 1 dataset"


def test_a_dataset_of_ratings_can_be_trained_on(manager: Client, project: Project, ann: User) -> None:
    made = freeze(project=project, rounds=[rated_round(project, ann)], rule="majority", name="rated")
    page = manager.get(made.get_absolute_url()).content.decode()
    assert f'href="{reverse("run_new", args=[project.slug])}?dataset={made.pk}"' in page
    assert "median of their strengths" not in page
    assert "both bad" not in page
    assert "Ratings are kept one by one." in page


def test_a_dataset_of_pairs_tells_its_rule_and_can_train(manager: Client, dataset: PreferenceDataset) -> None:
    page = manager.get(dataset.get_absolute_url()).content.decode()
    assert "median of their strengths" in page
    assert "Train on it" in page
    assert "Ratings are kept" not in page


def test_the_first_row_of_each_table_is_shown_as_people_read_it(
    manager: Client, dataset: PreferenceDataset
) -> None:
    page = manager.get(dataset.get_absolute_url()).content.decode()
    assert '<h4>Chosen</h4><div class="prose"><p>A fox 0.</p>' in page
    assert '<h4>Rejected</h4><div class="prose"><p>A hen 0.</p>' in page
    assert "strength 3, margin 2, weight 1, p 1" in page
    assert "<p>Tell me story 1.0.</p>" in page


def test_a_ranking_is_shown_in_its_order(manager: Client, project: Project, ann: User) -> None:
    ranked = judged.make_round(project, "ranking")
    policy = factories.make_policy(project)
    task = judged.make_task(ranked, judged.make_prompt(project, "Rank."), ["A hen.", "A fox."], [policy] * 2)
    hen, fox = (item.completion_id for item in task.items.order_by("completion_id"))
    judged.say(task, ann, {"ranks": {str(fox): 1, str(hen): 2}})
    made = freeze(project=project, rounds=[ranked], rule="majority", name="ranked")
    page = manager.get(made.get_absolute_url()).content.decode()
    first, second = (page.index(f"<h4>Rank {rank}</h4>") for rank in (1, 2))
    assert first < page.index("A fox.", first) < second < page.index("A hen.", second)
    assert "strengths" not in page


def test_a_preview_runs_nothing_that_a_completion_brings(
    manager: Client, project: Project, ann: User
) -> None:
    round = judged.make_round(project)
    policy = factories.make_policy(project)
    texts = ["<script>alert(1)</script>", '<img src=x onerror="alert(1)">']
    task = judged.make_task(round, judged.make_prompt(project, "<b hx-get='/'>Hi</b>"), texts, [policy] * 2)
    judged.vote(task, ann, 2)
    made = freeze(project=project, rounds=[round], rule="majority", name="hostile")
    page = manager.get(made.get_absolute_url()).content.decode()
    for hostile in ("<script>alert", "<img", "<b hx-get"):
        assert hostile not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_dataset_whose_files_are_gone_still_has_a_page(manager: Client, dataset: PreferenceDataset) -> None:
    shutil.rmtree(folder_of(dataset))
    page = manager.get(dataset.get_absolute_url())
    assert page.status_code == 200
    assert "The first row of each table" not in page.content.decode()


def test_a_link_can_choose_the_round(manager: Client, project: Project, round: Round, ann: User) -> None:
    judged.compared_round(project, [ann], [[1], [2]])
    address = reverse("dataset_new", args=[project.slug])
    assert manager.get(f"{address}?round={round.pk}").context["form"].initial["rounds"] == [round.pk]
    assert manager.get(f"{address}?round=x").status_code == 200
    assert manager.get(f"{address}?round={'9' * 40}").status_code == 200


def test_open_rounds_cannot_be_chosen(manager: Client, project: Project, round: Round) -> None:
    round.state = Round.State.OPEN
    round.save(update_fields=["state"])
    address = reverse("dataset_new", args=[project.slug])
    assert "No closed round has labels yet" in manager.get(address).content.decode()
    response = manager.post(address, {"rounds": [round.pk], "rule": "majority", "name": "x"})
    assert response.status_code == 422
    assert not PreferenceDataset.objects.exists()


def test_rounds_of_another_project_cannot_be_chosen(manager: Client, project: Project, ann: User) -> None:
    other = factories.make_project("Other")
    theirs = judged.compared_round(other, [ann], [[1], [2]])
    response = manager.post(
        reverse("dataset_new", args=[project.slug]),
        {"rounds": [theirs.pk], "rule": "majority", "name": "x"},
    )
    assert response.status_code == 422
    assert not PreferenceDataset.objects.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "First & best"}, "has that name already"),
        ({"name": ""}, "required"),
        ({"rule": "loudest"}, "not one of the available choices"),
        ({"rounds": []}, "Choose at least one closed round"),
    ],
)
def test_what_cannot_be_frozen_is_refused_with_the_reason(
    manager: Client, dataset: PreferenceDataset, round: Round, change: dict[str, Any], message: str
) -> None:
    data = {"rounds": [round.pk], "rule": "majority", "name": "second", **change}
    response = manager.post(reverse("dataset_new", args=[dataset.project.slug]), data)
    assert response.status_code == 422
    assert message in response.content.decode()
    assert PreferenceDataset.objects.count() == 1


def test_all_ties_are_refused_on_the_page(manager: Client, project: Project, ann: User) -> None:
    round = judged.compared_round(project, [ann], [[0], [0]])
    response = manager.post(
        reverse("dataset_new", args=[project.slug]),
        {"rounds": [round.pk], "rule": "majority", "name": "x"},
    )
    assert response.status_code == 422
    assert "Every comparison is a tie" in response.content.decode()


def test_the_page_shows_counts_rule_and_digest(manager: Client, dataset: PreferenceDataset) -> None:
    page = manager.get(dataset.get_absolute_url()).content.decode()
    assert "First &amp; best" in page
    assert "<b>8</b><span>labels of 2 raters</span>" in page
    assert "<b>7</b><span>used</span>" in page
    assert "<b>1</b><span>left out: both bad</span>" in page
    assert dataset.digest in page
    assert dataset.manifest["files"]["pairs/train.jsonl"]["sha256"] in page


def test_every_link_of_the_page_leads_to_the_bytes_of_the_manifest(
    manager: Client, dataset: PreferenceDataset
) -> None:
    import hashlib
    import re

    page = manager.get(dataset.get_absolute_url()).content.decode()
    start = f"/datasets/{dataset.pk}/files/"
    links = {link for link in re.findall(r'href="([^"]+)"', page) if link.startswith(start)}
    assert {link.removeprefix(start) for link in links} == {*dataset.manifest["files"], "manifest.json"}
    for link in links:
        name = link.removeprefix(start)
        digest = hashlib.sha256(body(manager.get(link))).hexdigest()
        expected = dataset.manifest["files"].get(name, {"sha256": dataset.digest})
        assert digest == expected["sha256"]


def test_a_download_streams_under_a_name_that_says_what_it_is(
    manager: Client, dataset: PreferenceDataset
) -> None:
    response = manager.get(reverse("dataset_file", args=[dataset.pk, "pairs/train.jsonl"]))
    assert isinstance(response, FileResponse)
    assert response["Content-Disposition"] == 'attachment; filename="first-best-pairs-train.jsonl"'
    assert [json.loads(line)["strength"] for line in body(response).splitlines()] == [3, 2, 1]


def test_a_file_of_a_proposed_name_does_not_say_dataset_twice(
    manager: Client, project: Project, round: Round
) -> None:
    made = freeze(project=project, rounds=[round], rule="majority", name="Round 1 dataset")
    response = manager.get(reverse("dataset_file", args=[made.pk, "pairs/train.jsonl"]))
    assert response["Content-Disposition"] == 'attachment; filename="round-1-pairs-train.jsonl"'


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "..%2F..%2Fdb.sqlite3",
        "/etc/passwd",
        "pairs",
        "pairs/../manifest.json",
        "pairs/train.csv",
        "secret.txt",
    ],
)
def test_no_name_leads_out_of_the_manifest(manager: Client, dataset: PreferenceDataset, name: str) -> None:
    (folder_of(dataset) / "secret.txt").write_text("not listed")
    response = manager.get(f"/datasets/{dataset.pk}/files/{name}")
    assert response.status_code == 404


def test_a_file_that_is_gone_is_not_found(manager: Client, dataset: PreferenceDataset) -> None:
    (folder_of(dataset) / "pairs" / "train.jsonl").unlink()
    assert manager.get(reverse("dataset_file", args=[dataset.pk, "pairs/train.jsonl"])).status_code == 404
    assert manager.get(reverse("dataset_zip", args=[dataset.pk])).status_code == 404


def test_all_files_come_in_one_archive_the_same_each_time(
    manager: Client, dataset: PreferenceDataset, tmp_path: Any
) -> None:
    response = manager.get(reverse("dataset_zip", args=[dataset.pk]))
    assert isinstance(response, StreamingHttpResponse)
    assert response["Content-Disposition"] == 'attachment; filename="first-best.zip"'
    packed = body(response)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    verify(tmp_path / "first-best", digest=dataset.digest)
    assert packed == body(manager.get(reverse("dataset_zip", args=[dataset.pk])))


def test_a_dataset_of_held_out_rows_says_that_none_can_train(
    manager: Client, project: Project, ann: User
) -> None:
    round = judged.compared_round(project, [ann], [[1], [2]], test_tasks=2)
    made = freeze(project=project, rounds=[round], rule="majority", name="test")
    assert "none can train on it" in manager.get(made.get_absolute_url()).content.decode()
