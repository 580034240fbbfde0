"""Open-Assistant trees: each set of ranked replies is a ranking with the turns before it."""

from pathlib import Path
from typing import Any

import pytest

from labeling.imports import ImportReport, import_file
from labeling.imports.open_assistant import (
    DELETED,
    FAILED_REVIEW,
    NO_REPLY,
    SAME_TEXT,
    SINGLE,
    UNRANKED_REPLY,
    UNRANKED_SET,
)
from labeling.models import Completion, Label, Project, Prompt, Task
from tests.labeling.test_imports import assistant, jsonl, user
from tests.labeling.trees import answered, asked, tree


def bring(project: Project, tmp_path: Path, *prompts: dict[str, Any]) -> ImportReport:
    return import_file(project=project, path=jsonl(tmp_path, *map(tree, prompts)))


def ranks_by_text() -> list[dict[str, int]]:
    texts = {str(c.pk): c.text for c in Completion.objects.all()}
    values = [label.value["ranks"] for label in Label.objects.order_by("pk") if label.value]
    return [{texts[pk]: rank for pk, rank in ranks.items()} for ranks in values]


def test_ranked_replies_become_a_ranking_from_one(project: Project, tmp_path: Path) -> None:
    report = bring(
        project, tmp_path, asked("Q", answered("b", rank=1), answered("a", rank=0), answered("c", rank=2))
    )
    assert report.form == "open-assistant"
    assert ranks_by_text() == [{"a": 1, "b": 2, "c": 3}]


def test_earlier_turns_are_the_prompt_of_a_later_ranking(project: Project, tmp_path: Path) -> None:
    later = asked("More?", answered("x", rank=0), answered("y", rank=1))
    bring(project, tmp_path, asked("Q", answered("a", later, rank=0), answered("b", rank=1)))
    first, second = Prompt.objects.order_by("pk")
    assert first.messages == [user("Q")]
    assert second.messages == [user("Q"), assistant("a"), user("More?")]
    assert ranks_by_text() == [{"a": 1, "b": 2}, {"x": 1, "y": 2}]


@pytest.mark.parametrize("odd", ["\ud800x", "\0", 7, None, {"a": "\ud800"}, "i" * 300_000])
def test_an_odd_id_of_a_message_is_not_kept_and_refuses_nothing(
    project: Project, tmp_path: Path, odd: Any
) -> None:
    bring(project, tmp_path, asked("Q", answered("a", rank=0, message_id=odd), answered("b", rank=1)))
    sources = [completion.sampling.get("source", "") for completion in Completion.objects.order_by("pk")]
    assert [bool(source) for source in sources] == [False, True]


def test_every_message_comes_in_ranked_or_not(project: Project, tmp_path: Path) -> None:
    report = bring(
        project,
        tmp_path,
        asked("single", answered("only", asked("waiting"))),
        asked("unranked", answered("a"), answered("b")),
        asked("partly", answered("c", rank=0), answered("d", rank=1), answered("e")),
        asked("one rank", answered("f", rank=0), answered("g")),
    )
    assert (report.prompts.created, report.completions.created, report.rankings.created) == (5, 8, 1)
    assert {note: n for note, n in report.notes.items() if n} == {
        SINGLE: 1,
        NO_REPLY: 1,
        UNRANKED_SET: 4,
        UNRANKED_REPLY: 1,
    }
    assert ranks_by_text() == [{"c": 1, "d": 2}]
    assert Task.objects.get().items.count() == 3  # the unranked one was there, and was not ranked


def test_deleted_and_rejected_messages_are_left_out_with_what_hangs_below(
    project: Project, tmp_path: Path
) -> None:
    report = bring(
        project,
        tmp_path,
        asked(
            "Q",
            answered("a", rank=0),
            answered("b", rank=1),
            answered("", asked("below"), rank=2, deleted=True),
            answered("spam", rank=3, review_result=False),
        ),
    )
    assert ranks_by_text() == [{"a": 1, "b": 2}]
    assert report.notes[DELETED] == 2
    assert report.notes[FAILED_REVIEW] == 1
    assert Prompt.objects.count() == 1


def test_equal_ranks_are_a_tie_and_gaps_close(project: Project, tmp_path: Path) -> None:
    bring(project, tmp_path, asked("Q", answered("a", rank=0), answered("b", rank=4), answered("c", rank=4)))
    assert ranks_by_text() == [{"a": 1, "b": 2, "c": 2}]


def test_two_replies_of_the_same_text_count_once_at_the_better_rank(project: Project, tmp_path: Path) -> None:
    report = bring(
        project, tmp_path, asked("Q", answered("a", rank=2), answered("b", rank=1), answered("a", rank=0))
    )
    assert ranks_by_text() == [{"a": 1, "b": 2}]
    assert report.notes[SAME_TEXT] == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (asked("Q", asked("again")), "has the role 'prompter'; 'assistant' is expected"),
        (answered("Q"), "has the role 'assistant'; 'prompter' is expected"),
        (
            asked("Q", answered("a", rank="first"), answered("b", rank=1)),
            "the rank 'first' is no whole number",
        ),
        (asked("Q", answered("a", rank=True), answered("b", rank=1)), "the rank True"),
        (asked("Q", answered("a", rank=-1), answered("b", rank=1)), "the rank -1"),
        (asked("Q", answered("a\0", rank=0)), "`text` has a NUL character"),
        (asked("Q", answered("  ", rank=0)), "`text` is empty"),
        (asked("Q", answered(7, rank=0)), "`text` is int"),  # type: ignore[arg-type]
        ({**asked("Q"), "replies": "none"}, "`replies` is no list"),
        ({**asked("Q"), "replies": ["x"]}, "a message is no object: 'x'"),
    ],
)
def test_one_fault_refuses_its_tree(
    project: Project, tmp_path: Path, prompt: dict[str, Any], message: str
) -> None:
    report = bring(project, tmp_path, asked("fine", answered("a")), prompt)
    [refusal] = report.refusals
    assert refusal.line == 2
    assert message in refusal.detail
    assert not Prompt.objects.exists()


def test_a_conversation_that_is_too_long_is_refused_and_not_a_crash(project: Project, tmp_path: Path) -> None:
    deepest = asked("end")
    for _ in range(150):
        deepest = asked("q", answered("a", deepest))
    report = bring(project, tmp_path, deepest)
    assert "at most 200" in report.refusals[0].detail


def test_what_was_left_out_of_a_refused_tree_is_not_counted(project: Project, tmp_path: Path) -> None:
    report = bring(
        project, tmp_path, asked("Q", answered("x", deleted=True), answered("a", asked("q", asked("bad"))))
    )
    assert report.refused == 1
    assert not report.notes
