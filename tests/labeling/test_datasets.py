"""Freezing: what is in the files, that the same labels give the same bytes, and what is refused."""

import hashlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from labeling.datasets import (
    DamagedDataset,
    FreezeFailed,
    InvalidFreeze,
    NothingToFreeze,
    folder_of,
    freeze,
    gate_outcomes,
    verify,
)
from labeling.models import Label, PreferenceDataset, Project, Round, Skip
from tests import factories
from tests.labeling import judged

VOTES: list[list[int | None]] = [[4, 2], [-1, -3], [0, 0], [None, None], [3, -3], [2, 1]]


@pytest.fixture
def round(project: Project, ann: User, bo: User) -> Round:
    return judged.compared_round(project, [ann, bo], VOTES)


def rows(dataset: PreferenceDataset, table: str, split: str = "train") -> list[dict[str, Any]]:
    path = folder_of(dataset) / table / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def nothing_was_left() -> bool:
    folder = Path(settings.DATASETS_DIR)
    return not PreferenceDataset.objects.exists() and not (folder.exists() and list(folder.iterdir()))


def test_pairs_hold_the_conversation_and_what_the_raters_said(project: Project, round: Round) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    assert rows(dataset, "pairs")[0] == {
        "prompt": [{"role": "user", "content": "Tell me story 1.0."}],
        "chosen": [{"role": "assistant", "content": "A fox 0."}],
        "rejected": [{"role": "assistant", "content": "A hen 0."}],
        "margin": 2.0,
        "weight": 1.0,
        "p": 1.0,
        "strength": 3,
    }
    assert [(row["strength"], row["p"]) for row in rows(dataset, "pairs")] == [
        (3, 1.0),
        (2, 1.0),
        (0, 0.5),
        (0, 0.5),
    ]
    assert rows(dataset, "pairs")[1]["chosen"][0]["content"] == "A hen 1."
    assert [row["strength"] for row in rows(dataset, "pairs", "test")] == [2]


def test_the_split_goes_by_prompt(project: Project, round: Round) -> None:
    dataset = freeze(project=project, rounds=[round], rule="each_label", name="first")
    train = {row["prompt"][0]["content"] for row in rows(dataset, "pairs")}
    test = {row["prompt"][0]["content"] for row in rows(dataset, "pairs", "test")}
    assert test == {"Tell me story 1.5."}
    assert not train & test


def test_every_prompt_that_was_asked_is_in_the_prompts_table(project: Project, round: Round) -> None:
    policy = factories.make_policy(project, "another")
    judged.make_task(
        round, judged.make_prompt(project, "Nobody answered this.", "test"), ["a", "b"], [policy] * 2
    )
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    assert len(rows(dataset, "prompts")) == 5
    assert [row["prompt"][0]["content"] for row in rows(dataset, "prompts", "test")] == [
        "Tell me story 1.5.",
        "Nobody answered this.",
    ]


def test_the_manifest_accounts_for_every_label_and_every_file(
    project: Project, round: Round, ann: User
) -> None:
    Skip.objects.create(task=round.tasks.all()[0], rater=ann, reason="too long")
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    manifest = json.loads((folder_of(dataset) / "manifest.json").read_bytes())
    assert manifest == dataset.manifest
    assert manifest["tables"] == {"pairs": {"train": 4, "test": 1}, "prompts": {"train": 5, "test": 1}}
    labels = manifest["labels"]
    assert (labels["read"], labels["used"], labels["left_out"]) == (12, 10, {"both bad": 2})
    (parent,) = manifest["parents"]["rounds"]
    assert (parent["number"], parent["labels"], parent["raters"], parent["skips"]) == (1, 12, 2, 1)
    assert manifest["parents"]["policies"] == [{"name": "starter", "completions_judged": 12}]
    files = contents(folder_of(dataset))
    own = files.pop("manifest.json")
    assert hashlib.sha256(own).hexdigest() == dataset.digest
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == {
        name: entry["sha256"] for name, entry in manifest["files"].items()
    }


def test_the_same_labels_give_the_same_bytes_under_any_name(project: Project, round: Round) -> None:
    one = freeze(project=project, rounds=[round], rule="majority", name="one")
    two = freeze(project=project, rounds=[round], rule="majority", name="two")
    assert contents(folder_of(one)) == contents(folder_of(two))
    assert one.digest == two.digest
    other = freeze(project=project, rounds=[round], rule="each_label", name="three")
    assert other.digest != one.digest


def test_only_the_label_that_counts_is_read(project: Project, round: Round) -> None:
    assignment = round.assignments.order_by("pk")[0]
    old = Label.objects.get(counts_for=assignment)
    assert old.value is not None
    value = {**old.value, "strength": 1}
    new = Label.objects.create(
        assignment=assignment,
        rater=old.rater,
        protocol=old.protocol,
        value=value,
        supersedes=old,
        key="6b0ff3a5-8ee5-4d42-b6d0-5b1c3e2f8d0a",
    )
    assignment.label = new
    assignment.save(update_fields=["label"])
    dataset = freeze(project=project, rounds=[round], rule="each_label", name="first")
    assert rows(dataset, "pairs")[0]["strength"] == 1
    assert dataset.manifest["labels"]["read"] == 12


def test_what_the_project_has_besides_does_not_change_the_bytes(project: Project, round: Round) -> None:
    first = freeze(project=project, rounds=[round], rule="majority", name="first")
    judged.make_prompt(project, "Nobody was asked this yet.")
    project.name = "Another name"
    project.save()
    again = freeze(project=project, rounds=[round], rule="majority", name="again")
    assert again.digest == first.digest


def test_rankings_and_ratings_have_their_own_tables(project: Project, ann: User, bo: User) -> None:
    policy = factories.make_policy(project)
    ranked = judged.make_round(project, "ranking")
    task = judged.make_task(ranked, judged.make_prompt(project, "Rank."), ["a", "b", "c"], [policy] * 3)
    first, second, third = (item.completion_id for item in task.items.all())
    judged.say(task, bo, {"ranks": {str(first): 2, str(second): 1, str(third): 2}})
    rated = judged.make_round(project, "rating")
    task = judged.make_task(rated, judged.make_prompt(project, "Rate."), ["d"], [policy])
    judged.say(task, bo, {"scores": {"overall": 5}})
    judged.say(task, ann, {"scores": {"overall": 2}})
    dataset = freeze(project=project, rounds=[rated, ranked], rule="each_label", name="both")
    (ranking,) = rows(dataset, "rankings")
    assert ranking["ranks"] == [1, 2, 2]
    assert ranking["completions"][0] == [{"role": "assistant", "content": "b"}]
    assert [row["weight"] for row in rows(dataset, "pairs")] == pytest.approx([1 / 3] * 3)
    ratings = [(row["rater"], row["rating"], row["criterion"]) for row in rows(dataset, "ratings")]
    assert ratings == [(1, 2, "overall"), (2, 5, "overall")]  # ann joined before bo
    assert "ann" not in json.dumps(dataset.manifest)


def test_parquet_and_the_hub_folder_hold_the_rows_of_the_jsonl(project: Project, round: Round) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dataset = freeze(project=project, rounds=[round], rule="each_label", name="first")
    folder = folder_of(dataset)
    for table in ("pairs", "prompts"):
        for split in ("train", "test"):
            expected = rows(dataset, table, split)
            assert pq.read_table(folder / table / f"{split}.parquet").to_pylist() == expected
            stream = folder / "hub" / table / split / "data-00000-of-00001.arrow"
            assert pa.ipc.open_stream(stream.read_bytes()).read_all().to_pylist() == expected


@pytest.mark.slow
def test_thousands_of_labels_cross_the_batches_without_loss(project: Project, ann: User) -> None:
    round = judged.compared_round(project, [ann], [[1 + i % 4] for i in range(1203)], test_tasks=3)
    dataset = freeze(project=project, rounds=[round], rule="each_label", name="many")
    texts = [row["chosen"][0]["content"] for row in rows(dataset, "pairs")]
    assert texts == [f"A fox {i}." for i in range(1200)]
    assert dataset.manifest["labels"]["used"] == 1203


@pytest.mark.parametrize("state", [Round.State.OPEN, Round.State.WAITING])
def test_a_round_that_is_not_closed_is_refused(project: Project, round: Round, state: str) -> None:
    round.state = state
    round.save(update_fields=["state"])
    with pytest.raises(InvalidFreeze, match="Round 1 is not closed"):
        freeze(project=project, rounds=[round], rule="majority", name="first")
    assert nothing_was_left()


def test_a_name_that_is_taken_is_refused_and_the_first_stays(project: Project, round: Round) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    before = contents(folder_of(dataset))
    with pytest.raises(InvalidFreeze, match="already has a dataset named 'first'"):
        freeze(project=project, rounds=[round], rule="each_label", name=" first ")
    assert contents(folder_of(dataset)) == before
    assert PreferenceDataset.objects.count() == 1


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, "two\nlines"])
def test_a_name_that_is_none_is_refused(project: Project, round: Round, name: str) -> None:
    with pytest.raises(InvalidFreeze, match="name"):
        freeze(project=project, rounds=[round], rule="majority", name=name)


def test_names_cannot_lead_out_of_the_folder(project: Project, round: Round) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="../../etc/passwd")
    assert folder_of(dataset).parent == Path(settings.DATASETS_DIR)


def test_names_that_look_alike_have_folders_of_their_own(project: Project, round: Round) -> None:
    one = freeze(project=project, rounds=[round], rule="majority", name="a b")
    two = freeze(project=project, rounds=[round], rule="majority", name="a-b")
    assert one.folder != two.folder


def test_an_unknown_rule_is_refused(project: Project, round: Round) -> None:
    with pytest.raises(InvalidFreeze, match="each_label, majority, mean_strength"):
        freeze(project=project, rounds=[round], rule="loudest", name="first")


def test_a_round_of_another_project_is_refused(project: Project, round: Round) -> None:
    other = factories.make_project("Other")
    with pytest.raises(InvalidFreeze, match="another project"):
        freeze(project=other, rounds=[round], rule="majority", name="first")


def test_no_rounds_is_refused(project: Project) -> None:
    with pytest.raises(InvalidFreeze, match="at least one closed round"):
        freeze(project=project, rounds=[], rule="majority", name="first")


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([], "no labels"),
        ([[0, 0], [0, None]], "Every comparison is a tie"),
        ([[3, -1], [-2, 4]], "Every comparison is a tie"),
        ([[None, None], [None, None]], "4 both bad"),
    ],
)
def test_labels_that_teach_nothing_are_refused_with_the_reason(
    project: Project, ann: User, bo: User, votes: list[list[int | None]], message: str
) -> None:
    round = judged.compared_round(project, [ann, bo], votes)
    with pytest.raises(NothingToFreeze, match=message):
        freeze(project=project, rounds=[round], rule="majority", name="first")
    assert nothing_was_left()


def test_ratings_of_one_class_only_are_refused(project: Project, ann: User) -> None:
    policy = factories.make_policy(project)
    round = judged.make_round(project, "rating")
    for number in range(3):
        prompt = judged.make_prompt(project, f"Rate {number}.")
        judged.say(judged.make_task(round, prompt, ["x"], [policy]), ann, {"scores": {"overall": 4}})
    with pytest.raises(NothingToFreeze, match="All 3 labels give the same rating"):
        freeze(project=project, rounds=[round], rule="each_label", name="first")


def test_a_round_that_was_opened_and_closed_again_meanwhile_is_refused(
    project: Project, round: Round
) -> None:
    """The labels read before may not be those that count now."""

    def reopen_and_close(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("SELECT COUNT(*)") and "labeling_skip" in sql:  # the last question before the end
            Round.objects.filter(pk=round.pk).update(closed_at=timezone.now())
        return execute(sql, *rest)

    with connection.execute_wrapper(reopen_and_close):
        with pytest.raises(FreezeFailed, match="opened and closed again"):
            freeze(project=project, rounds=[round], rule="majority", name="first")
    assert nothing_was_left()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write more into a file: what a full disk does, at a chosen point."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 300, 1200, 2000])
def test_a_disk_that_takes_no_more_leaves_nothing_half_written(
    project: Project, round: Round, size: int
) -> None:
    with files_of_at_most(size), pytest.raises(FreezeFailed, match="could not be written: File too large"):
        freeze(project=project, rounds=[round], rule="majority", name="first")
    assert nothing_was_left()
    assert freeze(project=project, rounds=[round], rule="majority", name="first").pk


def test_a_folder_left_by_a_process_that_died_is_no_hindrance(project: Project, round: Round) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    folder = folder_of(dataset)
    dataset.delete()
    (folder / "pairs" / "train.jsonl").write_text("half a li")
    again = freeze(project=project, rounds=[round], rule="majority", name="first")
    assert folder_of(again) == folder
    verify(folder, digest=again.digest)


def test_verify_sees_a_changed_and_a_missing_file(project: Project, round: Round) -> None:
    dataset = freeze(project=project, rounds=[round], rule="majority", name="first")
    folder = folder_of(dataset)
    assert verify(folder, digest=dataset.digest) == dataset.manifest
    path = folder / "pairs" / "test.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace("fox", "cat"))
    with pytest.raises(DamagedDataset, match=r"pairs/test.jsonl .* was changed"):
        verify(folder, digest=dataset.digest)
    path.unlink()
    with pytest.raises(DamagedDataset, match=r"test.jsonl .* is missing"):
        verify(folder, digest=dataset.digest)
    shutil.rmtree(folder)
    with pytest.raises(DamagedDataset, match=r"manifest.json .* is missing"):
        verify(folder, digest=dataset.digest)


@pytest.mark.parametrize(("vote", "score"), [(4, 1.0), (1, 1.0), (-2, 0.0), (0, 0.5), (None, 0.5)], ids=str)
@pytest.mark.parametrize("new_first", [True, False])
def test_gate_outcomes_are_seen_from_the_new_policy(
    project: Project, ann: User, vote: int | None, score: float, new_first: bool
) -> None:
    """`vote` is above 0 when the new policy's completion is preferred, whichever was stored first."""
    old, new = factories.make_policy(project, "old"), factories.make_policy(project, "new", "candidate")
    round = judged.make_round(project, old_policy=old, new_policy=new)
    prompt = judged.make_prompt(project, "Gate.", "test")
    task = judged.make_task(round, prompt, ["x", "y"], [new, old] if new_first else [old, new], "gate")
    judged.vote(task, ann, -vote if vote and not new_first else vote)
    (outcome,) = gate_outcomes(round)
    assert (outcome.prompt, outcome.score) == (prompt.pk, score)


def test_gate_outcomes_come_from_gate_tasks_of_two_policies_only(
    project: Project, ann: User, round: Round
) -> None:
    assert gate_outcomes(round) == []
    old, new = factories.make_policy(project, "old"), factories.make_policy(project, "new", "candidate")
    second = judged.make_round(project, old_policy=old, new_policy=new)
    task = judged.make_task(second, judged.make_prompt(project, "Both new."), ["x", "y"], [new, new])
    judged.vote(task, ann, 3)
    assert gate_outcomes(second) == []


def test_gate_rankings_count_too(project: Project, ann: User) -> None:
    old, new = factories.make_policy(project, "old"), factories.make_policy(project, "new", "candidate")
    round = judged.make_round(project, "ranking", old_policy=old, new_policy=new)
    task = judged.make_task(
        round, judged.make_prompt(project, "Gate.", "test"), ["x", "y"], [old, new], "gate"
    )
    first, second = (item.completion_id for item in task.items.all())
    judged.say(task, ann, {"ranks": {str(first): 2, str(second): 1}})
    assert [outcome.score for outcome in gate_outcomes(round)] == [1.0]


def test_the_web_process_loads_pyarrow_only_when_it_freezes() -> None:
    code = (
        "import django, sys; django.setup(); import labeling.datasets;"
        "sys.exit(bool({'pyarrow', 'numpy', 'datasets', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
