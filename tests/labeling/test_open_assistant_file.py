"""The real thing: 100 trees of Open-Assistant, where the file is there (RATCHET_SHARED, or ../shared)."""

import os
from pathlib import Path

import pytest

from labeling import rounds
from labeling.datasets import freeze
from labeling.imports import ImportReport, import_file
from labeling.imports.open_assistant import NO_REPLY, SINGLE, UNRANKED_REPLY, UNRANKED_SET
from labeling.models import Assignment, Completion, Label, Project, Prompt, Round
from tests import factories

SHARED = Path(os.environ.get("RATCHET_SHARED") or Path(__file__).resolve().parents[3] / "shared")
FILE = SHARED / "data" / "oasst_en_100_tree.jsonl"

pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason="oasst_en_100_tree.jsonl is not here: set RATCHET_SHARED to its folder"
)


@pytest.fixture
def report(project: Project) -> ImportReport:
    return import_file(project=project, path=FILE)


def test_all_of_it_comes_in(report: ImportReport) -> None:
    assert (report.rows, report.refused) == (100, 0)
    assert (report.prompts.created, report.completions.created, report.rankings.created) == (480, 687, 212)
    assert Prompt.objects.count() + Completion.objects.count() == 1167
    assert Label.objects.count() == Assignment.objects.filter(state=Assignment.State.DONE).count() == 212
    ranked = [len(label.value["ranks"]) for label in Label.objects.all() if label.value]
    assert (sum(ranked), min(ranked), max(ranked)) == (641, 2, 9)
    assert {note: n for note, n in report.notes.items() if n} == {
        SINGLE: 40,
        UNRANKED_SET: 5,
        UNRANKED_REPLY: 1,
        NO_REPLY: 226,
    }


def test_it_comes_in_once(project: Project, report: ImportReport) -> None:
    again = import_file(project=project, path=FILE)
    assert (again.created, again.rankings.known) == (0, 212)
    assert Label.objects.count() == 212


def test_no_conversation_stands_on_both_sides_of_the_split(report: ImportReport) -> None:
    sides: dict[str, set[str]] = {}
    for prompt in Prompt.objects.all():
        sides.setdefault(prompt.messages[0]["content"], set()).add(prompt.split)
    assert len(sides) == 100
    assert all(len(side) == 1 for side in sides.values())
    assert {"test"} in sides.values()


def test_it_freezes_into_212_rankings(project: Project, report: ImportReport) -> None:
    round = Round.objects.get(project=project)
    dataset = freeze(project=project, rounds=[round], rule="each_label", name="oasst")
    tables = dataset.manifest["tables"]["rankings"]
    assert sum(split["rows"] if isinstance(split, dict) else split for split in tables.values()) == 212


def test_new_tasks_on_the_same_prompts_can_be_judged(project: Project, report: ImportReport) -> None:
    plan = rounds.RoundPlan(source="existing", train_prompts=40, test_prompts=5)
    made = rounds.create_round(project=project, protocol=factories.make_protocol(project), plan=plan)
    assert made.state == Round.State.OPEN
    assert made.tasks.count() == 45
    assert set(made.tasks.values_list("completions__policy__name", flat=True)) == {f"imported: {FILE.name}"}
