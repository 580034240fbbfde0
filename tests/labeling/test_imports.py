"""What each form of file becomes: prompts, completions by an external policy, labels in a closed round."""

import json
from pathlib import Path
from typing import Any

import pytest

from labeling.imports import Progress, import_file
from labeling.models import (
    Assignment,
    Completion,
    Import,
    Label,
    Policy,
    Project,
    Prompt,
    Protocol,
    RaterProgress,
    Round,
    Task,
)
from labeling.prompts import add_prompts
from tests import factories


def jsonl(tmp_path: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def the_value() -> dict[str, Any]:
    """What the one label that there is says."""
    value = Label.objects.get().value
    assert value is not None
    return dict(value)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SKY, BLUE, GREEN = "What colour is the sky?", "It is blue.", "It is green."

PAIRS: dict[str, dict[str, Any]] = {
    "explicit plain": {"prompt": SKY, "chosen": BLUE, "rejected": GREEN},
    "explicit conversational": {
        "prompt": [user(SKY)],
        "chosen": [assistant(BLUE)],
        "rejected": [assistant(GREEN)],
    },
    "implicit conversational": {
        "chosen": [user(SKY), assistant(BLUE)],
        "rejected": [user(SKY), assistant(GREEN)],
    },
    "prompt as text, completions with the prompt before them": {
        "prompt": SKY,
        "chosen": [user(SKY), assistant(BLUE)],
        "rejected": [user(SKY), assistant(GREEN)],
    },
    "dialogues of Anthropic's HH": {
        "chosen": f"\n\nHuman: {SKY}\n\nAssistant: {BLUE}",
        "rejected": f"\n\nHuman: {SKY}\n\nAssistant: {GREEN}",
    },
    "explicit dialogue that asks for the next turn": {
        "prompt": f"\n\nHuman: {SKY}\n\nAssistant:",
        "chosen": BLUE,
        "rejected": GREEN,
    },
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_each_form_of_pair_becomes_the_same_label(
    project: Project, tmp_path: Path, row: dict[str, Any]
) -> None:
    report = import_file(project=project, path=jsonl(tmp_path, row))
    assert (report.form, report.stored, report.comparisons.created) == ("pairs-jsonl", True, 1)
    label = Label.objects.get()
    chosen, rejected = Completion.objects.order_by("pk")
    assert chosen.prompt.messages == [user(SKY)]
    assert (chosen.text, rejected.text) == (BLUE, GREEN)
    assert label.value == {"outcome": "preferred", "preferred": chosen.pk, "strength": 2}


def test_an_implicit_plain_prompt_is_the_beginning_that_both_share(project: Project, tmp_path: Path) -> None:
    import_file(
        project=project, path=jsonl(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is green."})
    )
    assert Prompt.objects.get().messages == [user("The sky is")]
    assert [c.text for c in Completion.objects.all()] == [" blue.", " green."]


def test_an_implicit_plain_prompt_cuts_no_word(project: Project, tmp_path: Path) -> None:
    row = {"chosen": "The grass is green.", "rejected": "The grass is grey."}
    import_file(project=project, path=jsonl(tmp_path, row))
    assert Prompt.objects.get().messages == [user("The grass is")]
    assert [c.text for c in Completion.objects.all()] == [" green.", " grey."]


def test_earlier_turns_and_a_system_message_stay_in_the_prompt(project: Project, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello!"), user(SKY)]
    row = {"chosen": [*turns, assistant(BLUE)], "rejected": [*turns, assistant(GREEN)]}
    import_file(project=project, path=jsonl(tmp_path, row))
    assert Prompt.objects.get().messages == turns


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ({}, 2),
        ({"margin": 0}, 1),
        ({"margin": 1.0}, 2),
        ({"margin": 2.4}, 3),
        ({"margin": 3}, 4),
        ({"margin": 17}, 4),
        ({"margin": None}, 2),
        ({"margin": 3, "strength": 1}, 1),
    ],
)
def test_a_margin_becomes_a_strength(
    project: Project, tmp_path: Path, columns: dict[str, Any], value: int
) -> None:
    import_file(project=project, path=jsonl(tmp_path, {**PAIRS["explicit plain"], **columns}))
    assert the_value()["strength"] == value


def test_strength_zero_is_a_tie(project: Project, tmp_path: Path) -> None:
    import_file(project=project, path=jsonl(tmp_path, {**PAIRS["explicit plain"], "strength": 0, "p": 0.5}))
    assert Label.objects.get().value == {"outcome": "tie"}


def test_pairs_come_in_as_csv(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('Prompt;Chosen;Rejected;Margin\n"Two\nlines; here";good;bad;3\n', encoding="utf-8")
    report = import_file(project=project, path=path)
    assert report.form == "pairs-csv"
    assert Prompt.objects.get().messages == [user("Two\nlines; here")]
    assert the_value()["strength"] == 4


def test_rankings_come_in_with_ties_and_unranked_completions(project: Project, tmp_path: Path) -> None:
    row = {
        "prompt": [user(SKY)],
        "completions": [[assistant("c")], [assistant("a")], [assistant("b")], [assistant("d")]],
        "ranks": [5, 1, 1, None],
    }
    report = import_file(project=project, path=jsonl(tmp_path, row))
    ids = {c.text: str(c.pk) for c in Completion.objects.all()}
    assert report.rankings.created == 1
    assert Label.objects.get().value == {"ranks": {ids["a"]: 1, ids["b"]: 1, ids["c"]: 2}}
    assert Task.objects.get().items.count() == 4


def test_an_imported_label_is_stored_like_one_of_ours(project: Project, tmp_path: Path) -> None:
    report = import_file(
        project=project, path=jsonl(tmp_path, *PAIRS.values(), {**PAIRS["explicit plain"], "margin": 3})
    )
    assert (report.comparisons.created, report.repeated) == (2, 5)  # the six forms say the same
    round = Round.objects.get()
    assert (round.state, round.wanted, round.pk) == (Round.State.CLOSED, 2, report.round)
    assert round.protocol.kind == Protocol.Kind.COMPARISON
    assert round.plan["source"] == "import"
    for assignment in Assignment.objects.select_related("label", "rater"):
        assert assignment.state == Assignment.State.DONE
        assert assignment.label is not None and assignment.rater is not None
        assert assignment.label.assignment == assignment
        assert assignment.label.rater == assignment.rater
        assert not assignment.rater.is_active
        assert not assignment.rater.has_usable_password()
    assert RaterProgress.objects.get().labels == 2
    policy = Completion.objects.order_by("pk")[0].policy
    assert (policy.state, policy.name) == (Policy.State.EXTERNAL, "imported: data.jsonl")
    assert project.policies.get() == policy


def test_labels_on_held_out_prompts_are_held_out(project: Project, tmp_path: Path) -> None:
    project.test_percent = 50
    project.save()
    rows = [{"prompt": f"Question {n}", "chosen": "yes", "rejected": "no"} for n in range(40)]
    import_file(project=project, path=jsonl(tmp_path, *rows))
    sides = set(Task.objects.values_list("purpose", "prompt__split"))
    assert sides == {("train", "train"), ("test", "test")}


def test_an_import_uses_the_projects_protocol_when_it_allows_what_the_file_says(
    project: Project, tmp_path: Path
) -> None:
    ours = factories.make_protocol(project)
    import_file(project=project, path=jsonl(tmp_path, PAIRS["explicit plain"]))
    assert Label.objects.get().protocol == ours
    assert project.protocols.count() == 1


def test_a_protocol_that_is_too_narrow_is_not_used(project: Project, tmp_path: Path) -> None:
    narrow = factories.make_protocol(project)
    Protocol.objects.filter(pk=narrow.pk).update(options={"strengths": 1, "tie": False, "both_bad": False})
    import_file(project=project, path=jsonl(tmp_path, PAIRS["explicit plain"]))
    assert Label.objects.get().protocol.options["strengths"] == 4


def test_prompts_come_in_from_text_one_a_line(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b'\xef\xbb\xbfTell me a story.\r\n\r\n  two  spaces \r\nSay "a,b"\x0bthere')
    report = import_file(project=project, path=path)
    assert report.form == "prompts-txt"
    texts = [p.messages[0]["content"] for p in Prompt.objects.all()]
    assert texts == ["Tell me a story.", "  two  spaces ", 'Say "a,b"\x0bthere']
    assert report.prompts.created == 3
    assert not Completion.objects.exists()
    assert not Round.objects.exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_csv_is_read_in_every_encoding_that_can_be_told(
    project: Project, tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(
        'id,prompt\r\n1,"Erzähl mir, bitte,\r\neine Geschichte"\r\n2,日本語\r\n'.encode(encoding)
    )
    report = import_file(project=project, path=path)
    assert report.form == "prompts-csv"
    texts = [p.messages[0]["content"] for p in Prompt.objects.all()]
    assert texts == ["Erzähl mir, bitte,\r\neine Geschichte", "日本語"]


def test_prompts_come_in_from_jsonl_as_text_and_as_messages(project: Project, tmp_path: Path) -> None:
    turns = [user("Hi"), assistant("Hello"), user("Again")]
    report = import_file(
        project=project, path=jsonl(tmp_path, {"prompt": "A"}, {"prompt": turns}, {"messages": [user("B")]})
    )
    assert report.form == "prompts-jsonl"
    assert [p.messages for p in Prompt.objects.all()] == [[user("A")], turns, [user("B")]]


def test_a_form_can_be_named(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_text("prompt\nsecond\n")
    assert import_file(project=project, path=path, form="prompts-txt").prompts.created == 2


def test_importing_twice_changes_nothing(project: Project, tmp_path: Path) -> None:
    path = jsonl(tmp_path, PAIRS["explicit plain"], {"prompt": "Q", "chosen": "x", "rejected": "y"})
    import_file(project=project, path=path)
    again = import_file(project=project, path=path)
    other_name = import_file(project=project, path=path.rename(tmp_path / "other.jsonl"))
    for report in (again, other_name):
        assert report.stored and report.created == 0
        assert (report.prompts.known, report.completions.known, report.comparisons.known) == (2, 4, 2)
    assert (Prompt.objects.count(), Completion.objects.count(), Label.objects.count()) == (2, 4, 2)
    assert Round.objects.count() == 1


def test_the_same_two_completions_can_be_judged_both_ways(project: Project, tmp_path: Path) -> None:
    one = PAIRS["explicit plain"]
    other = {**one, "chosen": one["rejected"], "rejected": one["chosen"]}
    assert import_file(project=project, path=jsonl(tmp_path, one, other)).comparisons.created == 2
    assert Completion.objects.count() == 2


def test_two_ties_of_one_prompt_with_different_completions_are_two(project: Project, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "a", "rejected": text, "strength": 0} for text in "bc"]
    assert import_file(project=project, path=jsonl(tmp_path, *rows)).comparisons.created == 2


def test_a_prompt_that_is_there_already_keeps_its_row(project: Project, tmp_path: Path) -> None:
    [prompt] = add_prompts(project=project, conversations=[[{"role": "user", "content": SKY}]])
    import_file(project=project, path=jsonl(tmp_path, PAIRS["explicit plain"]))
    assert Task.objects.get().prompt == prompt


def test_progress_goes_through_both_phases(project: Project, tmp_path: Path) -> None:
    seen: list[Progress] = []
    import_file(project=project, path=jsonl(tmp_path, PAIRS["explicit plain"]), progress=seen.append)
    assert [p.phase for p in seen] == ["reading", "storing"]
    assert all(0 <= p.done <= p.total for p in seen)


def test_hostile_text_is_rendered_harmless(project: Project, tmp_path: Path) -> None:
    row = {"prompt": "<img src=x onerror=alert(1)>", "chosen": "<script>x</script>", "rejected": "b"}
    import_file(project=project, path=jsonl(tmp_path, row))
    assert "<img" not in Prompt.objects.get().html[0]
    assert not Completion.objects.filter(html__contains="<script").exists()


def test_a_person_with_the_name_of_the_imported_rater_gets_no_labels(
    project: Project, tmp_path: Path
) -> None:
    factories.make_user(f"imported-{project.slug}")
    from labeling.imports import UnreadableFile

    with pytest.raises(UnreadableFile, match="belongs to a person"):
        import_file(project=project, path=jsonl(tmp_path, PAIRS["explicit plain"]))
    assert not Prompt.objects.exists()
    assert not Import.objects.exists()
