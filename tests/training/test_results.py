"""What comes home from a run folder: all of it or nothing, once."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from labeling.models import Completion, Policy, Project, Round, Task
from tests import factories
from tests.training import stage
from training import leases, results, runs
from training.leases import Lease, LeaseLost
from training.models import Artifact, Run
from training.rlhf.run_dir import RunDir, write_json
from training.run_folders import write_run_folder

State = Run.State


def claim(run: Run) -> tuple[Lease, RunDir]:
    """The run as a worker holds it, with its folder."""
    claimed = leases.claim_run(worker="one", device="cpu:0")
    assert claimed == run
    lease = Lease(run_id=run.pk, worker="one", attempt=claimed.attempt, state=State.RUNNING)
    return lease, write_run_folder(claimed)


def leave_model(folder: RunDir, evaluation: str = '{"accuracy": 0.7}') -> None:
    folder.model.mkdir()
    (folder.model / "model.safetensors").write_bytes(b"weights")
    write_json(folder.model / "lineage.json", {"seed": 0})
    folder.evaluation.write_text(evaluation)
    write_json(folder.result, {"format": 1})


def leave_completions(folder: RunDir, rows: list[dict[str, Any]] | None = None, **changes: Any) -> None:
    if rows is None:
        requests = [json.loads(line) for line in (folder.data / "requests.jsonl").read_text().splitlines()]
        rows = [
            {
                "request": n,
                "policy": policy,
                "text": f"story {n}.{k}",
                "finish": "eos",
                "tokens": 3,
                **changes,
            }
            for n, request in enumerate(requests)
            for k, policy in enumerate(request["policies"])
        ]
    folder.completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder.result, {"format": 1})


def sampling_run(project: Project, **plan: Any) -> Run:
    return runs.queue_sampling(stage.make_sampled_round(project, **plan))


def test_a_reward_model_becomes_an_artifact(project: Project, ann: User) -> None:
    run = stage.make_queued_run(project, ann, Run.Method.REWARD_MODEL)
    lease, folder = claim(run)
    leave_model(folder, '{"accuracy": 0.7, "ece": NaN}')
    results.import_results(lease)
    artifact = Artifact.objects.get(run=run)
    run.refresh_from_db()
    assert (artifact.kind, artifact.folder) == ("reward_model", str(folder.model.resolve()))
    assert artifact.lineage == {"seed": 0}
    assert (run.state, run.evaluation) == (State.COMPLETE, {"accuracy": 0.7, "ece": None})
    assert run.ended_at is not None


def test_a_dpo_run_leaves_a_candidate_that_knows_its_parent(project: Project, ann: User) -> None:
    run = stage.make_queued_run(project, ann)
    lease, folder = claim(run)
    leave_model(folder)
    results.import_results(lease)
    policy = Policy.objects.get(artifact__run=run)
    project.refresh_from_db()
    assert policy.name == f"policy 2 (DPO, run {run.pk})"
    assert (policy.state, policy.parent, policy.location) == ("candidate", run.policy, str(folder.model))
    assert project.current_policy == run.policy


def test_results_come_home_once(project: Project, ann: User) -> None:
    lease, folder = claim(stage.make_queued_run(project, ann))
    leave_model(folder)
    results.import_results(lease)
    with pytest.raises(LeaseLost):
        results.import_results(lease)
    assert Artifact.objects.count() == 1


def test_without_a_result_nothing_comes_home(project: Project, ann: User) -> None:
    run = stage.make_queued_run(project, ann)
    lease, folder = claim(run)
    leave_model(folder)
    folder.result.unlink()
    with pytest.raises(results.ResultsRefused, match=r"result\.json"):
        results.import_results(lease)
    run.refresh_from_db()
    assert (run.state, Artifact.objects.count()) == (State.RUNNING, 0)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder.model / "model.safetensors").unlink(), "no weights"),
        (lambda folder: folder.evaluation.write_text("{"), "evaluation.json"),
        (lambda folder: (folder.model / "lineage.json").write_bytes(b"\xff"), "lineage.json"),
    ],
)
def test_half_of_a_result_is_none(project: Project, ann: User, spoil: Any, said: str) -> None:
    run = stage.make_queued_run(project, ann)
    lease, folder = claim(run)
    leave_model(folder)
    spoil(folder)
    with pytest.raises(results.ResultsRefused, match=said):
        results.import_results(lease)
    run.refresh_from_db()
    assert (run.state, Artifact.objects.count(), Policy.objects.count()) == (State.RUNNING, 0, 1)


# --- sampling -----------------------------------------------------------------------------------------------


def test_sampled_completions_are_put_before_the_raters(project: Project) -> None:
    run = sampling_run(project, train=3, test=2)
    lease, folder = claim(run)
    leave_completions(folder)
    results.import_results(lease)
    round = Round.objects.get()
    assert round.state == Round.State.OPEN
    assert sorted(round.tasks.values_list("purpose", flat=True)) == [
        "test",
        "test",
        "train",
        "train",
        "train",
    ]
    task = round.tasks.filter(purpose=Task.Purpose.TRAIN).first()
    assert task is not None
    for completion in task.completions.all():
        assert completion.prompt_id == task.prompt_id
        assert completion.policy == project.current_policy
        assert completion.html
        assert completion.sampling["finish"] == "eos"
        assert completion.sampling["temperature"] == 1.0
    assert "10 completions for 5 tasks" in Run.objects.get().message


def test_characters_that_cannot_be_stored_are_replaced(project: Project) -> None:
    lease, folder = claim(sampling_run(project, train=1, test=0))
    leave_completions(
        folder,
        [
            {"request": 0, "policy": policy, "text": text, "finish": "eos", "tokens": 1}
            for text, policy in (("a\0b", run_policy(folder)), ("c\ud800d", run_policy(folder)))
        ],
    )
    results.import_results(lease)
    assert set(Completion.objects.values_list("text", flat=True)) == {"a\ufffdb", "c?d"}


def run_policy(folder: RunDir) -> str:
    return str(json.loads((folder.data / "requests.jsonl").read_text().splitlines()[0])["policies"][0])


def test_tasks_with_nothing_to_prefer_are_left_out(project: Project) -> None:
    lease, folder = claim(sampling_run(project, train=3, test=0))
    leave_completions(folder)
    rows = [json.loads(line) for line in folder.completions.read_text().splitlines()]
    for row in rows:
        if row["request"] == 1:
            row["text"] = "the same"
    leave_completions(folder, rows)
    results.import_results(lease)
    assert Task.objects.count() == 2
    assert "1 left out" in Run.objects.get().message


def test_a_policy_that_always_writes_the_same_is_refused(project: Project) -> None:
    lease, folder = claim(sampling_run(project))
    leave_completions(folder, text="the same")
    with pytest.raises(results.ResultsRefused, match="raise the temperature"):
        results.import_results(lease)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows[:-1], "asks for completions"),
        (lambda rows: [*rows, rows[-1]], "asks for completions"),
        (lambda rows: [*rows, {**rows[0], "request": 99}], "request 99"),
        (lambda rows: [{**rows[0], "policy": "policy-0"}, *rows[1:]], "asks for completions"),
        (lambda rows: [], "asks for completions"),
    ],
)
def test_completions_that_do_not_answer_the_requests_are_refused_whole(
    project: Project, spoil: Any, said: str
) -> None:
    lease, folder = claim(sampling_run(project))
    leave_completions(folder)
    rows = [json.loads(line) for line in folder.completions.read_text().splitlines()]
    leave_completions(folder, spoil(rows))
    with pytest.raises(results.ResultsRefused, match=said):
        results.import_results(lease)
    assert (Completion.objects.count(), Task.objects.count()) == (0, 0)
    assert Round.objects.get().state == Round.State.WAITING


def test_a_torn_file_of_completions_is_refused(project: Project) -> None:
    lease, folder = claim(sampling_run(project))
    leave_completions(folder)
    Path(folder.completions).write_text(folder.completions.read_text()[:-20])
    with pytest.raises(results.ResultsRefused, match="cannot be read"):
        results.import_results(lease)


def test_a_round_that_was_given_up_is_not_opened_again(project: Project) -> None:
    from labeling import rounds

    run = sampling_run(project)
    lease, folder = claim(run)
    leave_completions(folder)
    rounds.close_round(Round.objects.get())
    results.import_results(lease)
    run.refresh_from_db()
    assert (run.state, Completion.objects.count()) == (State.COMPLETE, 0)
    assert "closed before the completions came" in run.message


def test_a_round_against_another_policy_holds_one_completion_by_each_at_the_gate(project: Project) -> None:
    old = stage.make_starter(project)
    round = stage.make_sampled_round(project, train=2, test=4)
    candidate = factories.make_policy(project, "candidate", Policy.State.CANDIDATE)
    candidate.location = "org/candidate"
    candidate.save()
    round.new_policy = candidate
    round.plan |= {"gate_prompts": 2, "test_prompts": 2}
    round.save()
    lease, folder = claim(runs.queue_sampling(round))
    leave_completions(folder)
    results.import_results(lease)
    gates = round.tasks.filter(purpose=Task.Purpose.GATE)
    assert gates.count() == 2
    for task in gates:
        assert {completion.policy for completion in task.completions.all()} == {old, candidate}
        assert task.prompt.split == "test"
