"""What the form of a new round proposes."""

from pathlib import Path

from labeling import rounds
from labeling.forms.rounds import RoundForm
from labeling.imports import import_file
from labeling.models import Project, Round
from tests import factories
from tests.labeling.test_imports import jsonl


def bring_pairs(project: Project, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Question {n}?", "chosen": "a", "rejected": "b"} for n in range(20)]
    assert import_file(project=project, path=jsonl(tmp_path, *pairs)).round is not None


def test_after_an_import_the_new_round_takes_completions_from_where_one_can(
    project: Project, tmp_path: Path
) -> None:
    bring_pairs(project, tmp_path)
    form = RoundForm(project=project, kind="comparison")
    assert form.initial["source"] == "existing"
    assert form["source"].value() in dict(form.fields["source"].choices)  # type: ignore[attr-defined]


def test_an_import_does_not_hide_what_the_round_before_it_asked(project: Project, tmp_path: Path) -> None:
    bring_pairs(project, tmp_path)
    plan = rounds.RoundPlan(source="existing", train_prompts=3, seed=7)
    made = rounds.create_round(project=project, protocol=factories.make_protocol(project), plan=plan)
    pairs = {"prompt": "Another one?", "chosen": "a", "rejected": "b"}
    import_file(project=project, path=jsonl(tmp_path, pairs))
    assert Round.objects.latest("number").number > made.number
    initial = RoundForm(project=project, kind="comparison").initial
    assert (initial["source"], initial["train_prompts"], initial["seed"]) == ("existing", 3, 7)
