"""An audit of AI preferences: what people are asked, that it is blind, and how far they agree."""

import doctest
import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import ai_agreement, audits, datasets
from labeling.ai_agreement import AiJudged, agreement_with_ai
from labeling.audits import AuditRefused, open_audit, report
from labeling.models import Completion, PreferenceDataset, Project, Task
from tests import factories
from tests.labeling.ai_made import make_ai_pairs
from tests.labeling.judged import vote


@pytest.fixture
def ai_pairs(project: Project) -> PreferenceDataset:
    return make_ai_pairs(project)


def test_the_examples_in_the_docstrings_hold() -> None:
    tested = doctest.testmod(ai_agreement)
    assert tested.attempted > 2 and not tested.failed


def test_kappa_is_1_for_full_agreement_and_0_for_habits_alone() -> None:
    same = agreement_with_ai([AiJudged(n, float(n % 2), [1 if n % 2 else -1]) for n in range(40)])
    assert same.share is not None and same.share.rate == same.kappa == 1.0
    unmoved = agreement_with_ai([AiJudged(n, float(n % 2), [1]) for n in range(40)])
    assert unmoved.share is not None and (unmoved.share.rate, unmoved.kappa) == (0.5, 0.0)
    nothing = agreement_with_ai([AiJudged(1, 1.0, [])])
    assert (nothing.share, nothing.kappa, nothing.pairs) == (None, None, 0)


def test_an_audit_asks_about_pairs_by_chance_and_shows_nothing_of_the_verdict(
    project: Project, ai_pairs: PreferenceDataset
) -> None:
    round = open_audit(dataset=ai_pairs, pairs=8, overlap=2)
    tasks = Task.objects.filter(round=round).prefetch_related("completions")
    assert (round.state, len(tasks), round.wanted) == ("open", 8, 16)
    purposes = {task.purpose for task in tasks}
    assert purposes == {"train", "test"}
    texts = [completion.text for task in tasks for completion in task.completions.all()]
    assert sorted(texts) == sorted(t for n in range(8) for t in (f"good {n}", f"bad {n}"))
    first_is_chosen = [
        Completion.objects.get(pk=pair["first"]).text.startswith("good") for pair in round.audit.pairs
    ]
    assert True in first_is_chosen and False in first_is_chosen  # a coin's
    assert "p" not in json.dumps(list(Completion.objects.values_list("sampling", flat=True)))


def test_people_are_held_against_the_ai(
    project: Project, ai_pairs: PreferenceDataset, ann: User, bo: User
) -> None:
    round = open_audit(dataset=ai_pairs, pairs=8)
    for number, task in enumerate(Task.objects.filter(round=round).order_by("pk")):
        good_first = min(task.completions.all(), key=lambda one: one.pk).text.startswith("good")
        agrees = number != 0
        vote(task, ann, 2 if good_first == agrees else -2)
        vote(task, bo, 2 if good_first == agrees else -2)
    found = report(ai_pairs)
    assert found is not None and found.agreement.share is not None
    assert found.agreement.share.rate == 14 / 16
    assert (found.agreement.pairs, found.agreement.labels, found.humans.rate) == (8, 16, 1.0)
    assert found.agreement.kappa is not None and 0.4 < found.agreement.kappa < 1
    assert not audits.unaudited(PreferenceDataset.objects.all()).exists()


def test_a_second_audit_asks_about_other_pairs_until_none_is_left(ai_pairs: PreferenceDataset) -> None:
    one, other = open_audit(dataset=ai_pairs, pairs=5), open_audit(dataset=ai_pairs, pairs=5)
    rows = [[pair["row"] for pair in round.audit.pairs] for round in (one, other)]
    assert sorted(rows[0] + rows[1]) == list(range(8))
    with pytest.raises(AuditRefused, match="every pair"):
        open_audit(dataset=ai_pairs, pairs=1)
    assert list(audits.unaudited(PreferenceDataset.objects.all())) == [ai_pairs]  # nobody judged yet


def test_what_people_said_needs_no_audit(project: Project, ai_pairs: PreferenceDataset) -> None:
    human = PreferenceDataset.objects.create(
        project=project, name="h", rule="majority", folder="h", digest="h", manifest={"tables": {"pairs": {}}}
    )
    assert not audits.can_be_audited(human)
    with pytest.raises(AuditRefused, match="no pairs that an AI judged"):
        open_audit(dataset=human, pairs=1)


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


def test_the_page_warns_opens_an_audit_and_shows_the_agreement(
    manager: Client, ai_pairs: PreferenceDataset, ann: User
) -> None:
    page = manager.get(ai_pairs.get_absolute_url()).content.decode()
    assert "Nobody has audited these preferences yet" in page
    assert "lineage.jsonl" in page and "version 1 of the constitution" in page
    answer = manager.post(reverse("audit_new", args=[ai_pairs.pk]), {"pairs": 4, "overlap": 1})
    round = ai_pairs.audits.get().round
    assert answer.headers["Location"] == round.get_absolute_url()
    assert "nobody has judged one yet" in manager.get(ai_pairs.get_absolute_url()).content.decode()
    for task in Task.objects.filter(round=round):
        vote(task, ann, 1)
    page = manager.get(ai_pairs.get_absolute_url()).content.decode()
    assert "of 4 labels on 4 pairs" in page and "kappa" in page


def test_an_audit_that_cannot_be_is_refused_on_the_page(manager: Client, ai_pairs: PreferenceDataset) -> None:
    address = reverse("audit_new", args=[ai_pairs.pk])
    assert manager.post(address, {"pairs": 0, "overlap": 1}).status_code == 422
    path = datasets.folder_of(ai_pairs) / "pairs" / "train.jsonl"
    path.write_text(path.read_text() + "\n")
    answer = manager.post(address, {"pairs": 2, "overlap": 1})
    assert answer.status_code == 422
    assert "was changed after the dataset was frozen" in answer.content.decode()
    assert not ai_pairs.audits.exists()


def test_others_cannot_audit(client: Client, ai_pairs: PreferenceDataset, ann: User) -> None:
    client.force_login(ann)
    address = reverse("audit_new", args=[ai_pairs.pk])
    assert client.post(address, {"pairs": 2, "overlap": 1}).status_code == 404
    client.force_login(factories.make_user("zed"))
    assert client.post(address, {"pairs": 2, "overlap": 1}).status_code == 404


def test_a_dataset_of_an_ai_has_the_same_bytes_for_the_same_rows(project: Project) -> None:
    one, other = make_ai_pairs(project, "one"), make_ai_pairs(project, "other")
    assert one.digest == other.digest
    assert one.source == "ai"
    made: Any = one.manifest["made"]
    assert (made["policy"], made["judge"], made["constitution"]["version"]) == ("starter", "a judge", 1)
    assert one.manifest["labels"]["left_out"] == {"undecided": 3}
    datasets.verify(datasets.folder_of(one), digest=one.digest)
