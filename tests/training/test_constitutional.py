"""Runs that write by a constitution: chosen on a page, laid out in a folder, and what comes home."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import constitutions, datasets, prompting
from labeling.models import Constitution, Policy, PreferenceDataset, Project
from tests.labeling.ai_made import make_ai_pairs
from tests.labeling.judged import make_prompt
from tests.training import stage
from tests.training.run_pages import manager
from tests.training.test_results import claim
from tests.training.test_run_form import settings_of
from training import results, runs
from training.constitutional import create_run
from training.models import Run
from training.rlhf.run_dir import RunDir, write_json
from training.runs import RunRefused

__all__ = ["manager"]  # a fixture
State = Run.State
PRINCIPLES: Any = [{"text": "Be kind."}, {"text": "Be brief.", "critique": "Too long?"}]


@pytest.fixture
def constitution(project: Project) -> Constitution:
    """Of a project with a policy and prompts."""
    stage.make_starter(project)
    for number in range(4):
        make_prompt(project, f"Tell me {number}.", "test" if number == 3 else "train")
    return constitutions.save(project=project, principles=PRINCIPLES)


def make(constitution: Constitution, method: str, **config: Any) -> Run:
    project = constitution.project
    policy = project.current_policy
    assert policy is not None
    run = create_run(project=project, method=method, policy=policy, constitution=constitution, config=config)
    Run.objects.filter(pk=run.pk).update(state=State.QUEUED, preflight={"ok": True})
    run.refresh_from_db()
    return run


def text(said: str, finish: str = "eos") -> dict[str, Any]:
    return {"text": said, "finish": finish, "tokens": len(said)}


def asked(number: int, **columns: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"Tell me {number}."}]
    return {"row": number, "split": "test" if number == 3 else "train", "line": 1, "prompt": prompt} | columns


def revision(number: int, said: str, outcome: str = "revised") -> dict[str, Any]:
    turn = {"principle": 1 + number % 2, "critique": text("It is **rude**."), "revision": text(said)}
    return asked(number, answer=text("Go away."), turns=[turn], outcome=outcome)


def judged(number: int, p: float | None, outcome: str = "preferred") -> dict[str, Any]:
    said = [{"principle": 1, "there": "A", "back": "B", "verdict": "first" if p else "nonsense"}]
    both = [text(f"one {number}"), text(f"other {number}")]
    return asked(number, completions=both, said=said, p=p, outcome=outcome)


def leave(folder: RunDir, name: str, rows: list[dict[str, Any]], made: dict[str, Any] | None = None) -> None:
    (folder.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder.evaluation, {"made": made or {}})
    write_json(folder.result, {"format": 2})


def rows_of(dataset: PreferenceDataset, table: str, split: str = "train") -> list[Any]:
    path = datasets.folder_of(dataset) / table / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_folder_holds_the_prompts_and_the_principles_with_all_that_is_asked(
    constitution: Constitution,
) -> None:
    _, folder = claim(make(constitution, "critique_revision"))
    words = json.loads((folder.data / "constitution.json").read_text())
    assert (words["version"], len(words["principles"])) == (1, 2)
    assert words["principles"][1]["critique"] == "Too long?"
    assert "Be kind." in words["principles"][0]["comparison"]
    for split, count in (("train", 3), ("test", 1)):
        lines = (folder.data / f"prompts.{split}.jsonl").read_text().splitlines()
        assert len(lines) == count


def test_revisions_come_home_as_demonstrations_of_an_ai(constitution: Constitution) -> None:
    run = make(constitution, "critique_revision", seed=5)
    lease, folder = claim(run)
    rows = [revision(0, "Please\0 wait."), revision(1, "Wait", "cut"), revision(3, "Of course.")]
    leave(folder, "revisions.jsonl", rows)
    results.import_results(lease)
    run.refresh_from_db()
    made = run.made_dataset
    assert made is not None and run.state == State.COMPLETE
    assert (made.source, made.constitution, made.name) == ("ai", constitution, f"AI revisions, run {run.pk}")
    assert [row["completion"][0]["content"] for row in rows_of(made, "demonstrations")] == [
        "Please\ufffd wait."
    ]
    assert made.manifest["tables"] == {
        "demonstrations": {"train": 1, "test": 1},
        "prompts": {"train": 2, "test": 1},
    }
    assert made.manifest["labels"]["left_out"] == {"cut": 1}
    assert (made.manifest["made"]["run"], made.manifest["made"]["seed"]) == (run.pk, 5)
    lineage = (datasets.folder_of(made) / "lineage.jsonl").read_text()
    assert "It is **rude**." in lineage
    assert "1 cut" in run.message
    datasets.verify(datasets.folder_of(made), digest=made.digest)


def test_judged_pairs_come_home_with_the_preferred_one_chosen(constitution: Constitution) -> None:
    run = make(constitution, "ai_preferences")
    lease, folder = claim(run)
    rows = [judged(0, 1.0), judged(1, 0.25), judged(2, None, "undecided"), judged(3, 0.5, "tie")]
    leave(folder, "judged.jsonl", rows)
    results.import_results(lease)
    made = PreferenceDataset.objects.get(source="ai")
    pairs = rows_of(made, "pairs")
    assert [(pair["chosen"][0]["content"], pair["p"], pair["strength"]) for pair in pairs] == [
        ("one 0", 1.0, 1),
        ("other 1", 0.75, 1),
    ]
    (tie,) = rows_of(made, "pairs", "test")
    assert (tie["p"], tie["strength"]) == (0.5, 0)
    assert made.manifest["made"]["judge"] == "starter"
    assert made.manifest["labels"]["left_out"] == {"undecided": 1}


def test_a_judge_that_preferred_nothing_leaves_no_dataset_and_says_why(constitution: Constitution) -> None:
    run = make(constitution, "ai_preferences")
    lease, folder = claim(run)
    leave(folder, "judged.jsonl", [judged(n, None, "undecided") for n in range(3)])
    results.import_results(lease)
    run.refresh_from_db()
    assert (run.state, run.made_dataset) == (State.COMPLETE, None)
    assert run.message == "Complete. No dataset was made: 3 undecided."
    assert not PreferenceDataset.objects.exists()


@pytest.mark.parametrize(
    "change", [{"split": "secret"}, {"prompt": []}, {"p": "all"}, {"completions": [text("a")]}, {"p": 7}]
)
def test_rows_that_are_none_leave_nothing_behind(change: dict[str, Any], constitution: Constitution) -> None:
    run = make(constitution, "ai_preferences")
    lease, folder = claim(run)
    leave(folder, "judged.jsonl", [judged(0, 1.0), judged(1, 1.0) | change])
    with pytest.raises(results.ResultsRefused, match="cannot be used"):
        results.import_results(lease)
    run.refresh_from_db()
    assert run.state == State.RUNNING
    assert not PreferenceDataset.objects.exists()


def test_the_page_proposes_the_newest_version_and_makes_the_run(
    manager: Client, project: Project, constitution: Constitution
) -> None:
    newest = constitutions.save(project=project, principles=[{"text": "Be true."}])
    for method, field in (("critique_revision", "rounds"), ("ai_preferences", "principles")):
        address = f"{reverse('run_new', args=[project.slug])}?method={method}"
        page = manager.get(address)
        assert page.context["form"].initial["constitution"] == newest
        answer = manager.post(address, settings_of(page, seed=7, temperature=0.7, **{field: 2}))
        run = Run.objects.latest("pk")
        assert answer.headers["Location"] == run.get_absolute_url()
        assert (run.method, run.state, run.constitution) == (method, State.CHECKING, newest)
        assert (run.config[method][field], run.config["sampling"]["temperature"]) == (2, 0.7)
        like = manager.get(f"{reverse('run_new', args=[project.slug])}?like={run.pk}")
        assert like.context["form"].initial[field] == 2


def test_the_page_says_what_is_missing(manager: Client, project: Project) -> None:
    address = f"{reverse('run_new', args=[project.slug])}?method=critique_revision"
    assert "no constitution yet" in manager.get(address).content.decode()
    constitutions.save(project=project, principles=PRINCIPLES)
    assert "no prompts to write to" in manager.get(address).content.decode()
    make_prompt(project, "Tell me.")
    assert "there is none yet" in manager.get(address).content.decode()


def test_a_judge_is_a_policy_of_the_project_or_a_server_that_is_allowed(
    constitution: Constitution, settings: Any
) -> None:
    server = "http://127.0.0.1:8001/v1"
    with pytest.raises(RunRefused, match="neither in RATCHET_JUDGES nor a policy of this project"):
        make(constitution, "ai_preferences", ai_preferences={"judge": server})
    with pytest.raises(RunRefused, match="neither"):
        make(constitution, "ai_preferences", ai_preferences={"judge": "org/other"})
    settings.JUDGES = [server]
    run = make(constitution, "ai_preferences", ai_preferences={"judge": server})
    assert run.config["ai_preferences"]["judge"] == server


def test_a_judge_is_called_as_the_policy_whose_prompt_is_not_another(
    manager: Client, project: Project, constitution: Constitution
) -> None:
    policy = project.current_policy
    assert policy is not None
    prompting.make_prompted(policy=policy, system_prompt="Be brief.", examples=[])
    page = manager.get(f"{reverse('run_new', args=[project.slug])}?method=ai_preferences")
    choices = page.context["form"].fields["judge"].choices
    assert [label for _, label in choices] == ["The policy itself", str(policy)]


def test_parts_of_another_project_are_refused(constitution: Constitution) -> None:
    other = Project.objects.create(name="Other", slug="other")
    theirs = constitutions.save(project=other, principles=PRINCIPLES)
    policy = Policy.objects.create(project=other, name="theirs", location="org/x", state="promoted")
    project = constitution.project
    ours = project.current_policy
    assert ours is not None
    for parts in ({"policy": policy, "constitution": constitution}, {"policy": ours, "constitution": theirs}):
        with pytest.raises(RunRefused, match="another project"):
            create_run(project=project, method="critique_revision", **parts)  # type: ignore[arg-type]


def test_a_runs_page_shows_answers_critiques_revisions_and_what_became_of_them(
    manager: Client, constitution: Constitution
) -> None:
    run = make(constitution, "critique_revision")
    lease, folder = claim(run)
    rows = [revision(0, "Please <script>alert(1)</script> wait."), {"row": "odd"}]
    (folder.path / ".revisions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = manager.get(run.get_absolute_url()).content.decode()
    assert "Go away." in page and "<strong>rude</strong>" in page and "By the principle: Be kind." in page
    assert "<script>alert" not in page
    made = {"outcomes": {"revised": 1, "unchanged": 0, "cut": 0, "empty": 0}, "principles": {"1": 1, "2": 0}}
    leave(folder, "revisions.jsonl", rows[:1], made)
    results.import_results(lease)
    page = manager.get(run.get_absolute_url()).content.decode()
    assert "What came of it" in page and f"AI revisions, run {run.pk}" in page


def test_a_runs_page_counts_verdicts_apart(manager: Client, constitution: Constitution) -> None:
    run = make(constitution, "ai_preferences")
    lease, folder = claim(run)
    counts = {"first": 41, "second": 38, "tie": 4, "inconsistent": 11, "nonsense": 6}
    made = {"outcomes": {"preferred": 79}, "verdicts": counts, "principles": {"1": counts}}
    leave(folder, "judged.jsonl", [judged(0, 1.0)], made)
    results.import_results(lease)
    page = manager.get(run.get_absolute_url())
    assert [one.count for one in page.context["made"].verdicts] == [41, 38, 4, 11, 6]
    content = page.content.decode()
    assert "order-inconsistent" in content.lower() and "nonsense: not a, b or tie" in content.lower()
    assert "Preferred" in content and "Not preferred" in content


def test_who_learns_from_preferences_that_nobody_audited_is_warned(
    manager: Client, project: Project, constitution: Constitution
) -> None:
    ai = make_ai_pairs(project)
    page = manager.get(f"{reverse('run_new', args=[project.slug])}?method=dpo").content.decode()
    assert "Nobody has audited" in page
    policy = project.current_policy
    assert policy is not None
    run = runs.create_run(project=project, method="dpo", dataset=ai, policy=policy)
    page = manager.get(run.get_absolute_url()).content.decode()
    assert "preferences of an AI that nobody has audited" in page


def test_what_people_said_is_proposed_before_what_an_ai_preferred(
    manager: Client, project: Project, constitution: Constitution, ann: User
) -> None:
    human = stage.make_dataset(project, ann)
    ai = make_ai_pairs(project)
    form = manager.get(f"{reverse('run_new', args=[project.slug])}?method=dpo").context["form"]
    assert form.initial["dataset"] == human
    assert [label for _, label in form.fields["dataset"].choices] == ["first", f"{ai} (AI)"]


def test_a_program_makes_such_a_run_too(manager: Client, constitution: Constitution) -> None:
    project = constitution.project
    address = f"/api/v1/projects/{project.slug}/runs/"
    given = {"method": "critique_revision", "policy": project.current_policy_id}

    def post(**more: Any) -> Any:
        return manager.post(address, given | more, content_type="application/json")

    made = post(config={"critique_revision": {"rounds": 2}})
    assert made.status_code == 201
    run = Run.objects.get(pk=made.json()["id"])
    assert (run.constitution, run.config["critique_revision"]["rounds"]) == (constitution, 2)
    assert post(constitution=9).json() == {"constitution": "The project has no such version."}
    assert post(dataset=1).status_code == post(method="dpo").status_code == 400
    assert post(config={"critique_revision": {"rounds": 0}}).status_code == 400
