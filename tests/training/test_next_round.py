"""A new policy goes back to the people who taught it."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from labeling.models import Policy, Project, Round, Task
from labeling.rounds import RoundPlan, wanted
from tests import factories
from tests.labeling.judged import make_prompt
from tests.training import stage
from training import next_round
from training.models import Run
from training.worker import TrainingWorker


@pytest.fixture(autouse=True)
def _stub(settings: Any) -> None:
    stage.use_stub(settings)


@pytest.fixture
def candidate(project: Project) -> Policy:
    policy = factories.make_policy(project, "candidate", Policy.State.CANDIDATE)
    policy.location = "org/candidate"
    policy.save()
    return policy


def test_the_next_round_asks_what_the_last_one_asked_and_adds_a_gate(
    project: Project, candidate: Policy
) -> None:
    last = stage.make_sampled_round(project, train=20, test=10, temperature=0.8, overlap=2)
    made = next_round.create_next_round(project=project, policy=candidate)
    plan = RoundPlan.from_json(made.plan)
    assert (made.number, made.protocol, made.new_policy) == (2, last.protocol, candidate)
    assert made.old_policy == project.current_policy
    assert (plan.temperature, plan.overlap) == (0.8, 2)
    assert (plan.train_prompts, plan.test_prompts, plan.gate_prompts) == (14, 10, 6)


def test_a_fifth_of_the_tasks_becomes_the_gate_and_the_work_stays_the_same(
    project: Project, candidate: Policy
) -> None:
    stage.make_sampled_round(project, train=20, test=5)
    for number in range(10):
        make_prompt(project, f"One more {number}", "test")
    made = next_round.create_next_round(project=project, policy=candidate)
    plan = RoundPlan.from_json(made.plan)
    assert (plan.train_prompts, plan.test_prompts, plan.gate_prompts) == (15, 5, 5)
    gates = [request for request in wanted(made) if request.purpose == Task.Purpose.GATE]
    assert len(gates) == 5
    assert all(set(request.policies) == {candidate, project.current_policy} for request in gates)


def test_a_gate_that_was_planned_stays_as_it_is(project: Project, candidate: Policy) -> None:
    stage.make_sampled_round(project, train=20, test=5, gate_prompts=3)
    plan = RoundPlan.from_json(next_round.create_next_round(project=project, policy=candidate).plan)
    assert (plan.train_prompts, plan.gate_prompts) == (20, 3)


def test_a_changed_question_counts_from_the_next_round_on(project: Project, candidate: Policy) -> None:
    stage.make_sampled_round(project)
    changed = factories.make_protocol(project)
    factories.make_protocol(project, "ranking")  # of an import: not what this project's rounds ask
    assert next_round.create_next_round(project=project, policy=candidate).protocol == changed


def test_a_project_whose_labels_were_imported_gets_a_first_sampled_round(
    project: Project, candidate: Policy
) -> None:
    stage.make_starter(project)
    factories.make_protocol(project, "ranking")
    for number in range(3):
        make_prompt(project, f"Imported {number}")
    made = next_round.create_next_round(project=project, policy=candidate)
    assert {request.purpose for request in wanted(made)} == {"train"}


def judged_by_ratings(project: Project, **plan: Any) -> Round:
    factories.make_protocol(project, "rating")
    return stage.make_sampled_round(project, train=20, test=10, **plan)


def test_after_ratings_people_compare_since_ratings_open_no_gate(project: Project, candidate: Policy) -> None:
    last = judged_by_ratings(project)
    assert last.protocol.kind == "rating"
    made = next_round.create_next_round(project=project, policy=candidate)
    plan = RoundPlan.from_json(made.plan)
    assert made.protocol.kind == "comparison"
    assert made.protocol.options == {"strengths": 4, "tie": True, "both_bad": True}
    assert (plan.train_prompts, plan.test_prompts, plan.gate_prompts) == (14, 10, 6)
    purposes = [request.purpose for request in wanted(made)]
    assert [purposes.count(purpose) for purpose in ("train", "test", "gate")] == [14, 10, 6]
    assert all(len(request.policies) == 2 for request in wanted(made))


def test_after_ratings_the_newest_question_that_compares_is_asked(
    project: Project, candidate: Policy
) -> None:
    judged_by_ratings(project)
    factories.make_protocol(project, "comparison")
    ranking = factories.make_protocol(project, "ranking")
    factories.make_protocol(project, "rating")
    made = next_round.create_next_round(project=project, policy=candidate)
    assert made.protocol == ranking
    assert all(len(request.policies) == 2 for request in wanted(made))


@pytest.mark.parametrize(("held_out", "said"), [(0, "It has no gate"), (3, "")])
def test_a_round_that_cannot_promote_its_policy_says_so(
    project: Project, candidate: Policy, held_out: int, said: str
) -> None:
    stage.make_sampled_round(project, train=10, test=held_out)
    run = Run.objects.create(project=project, method="dpo", state=Run.State.COMPLETE)
    with transaction.atomic():
        changes = next_round.after(run=run, policy=candidate)
    assert ("It has no gate" in changes["message"]) == bool(said)
    plan = RoundPlan.from_json(changes["next_round"].plan)
    assert plan.train_prompts == (10 if said else 7)


def test_without_a_current_policy_no_task_is_given_up_for_a_gate(project: Project, candidate: Policy) -> None:
    stage.make_sampled_round(project, train=10, test=5)
    project.current_policy = None
    project.save()
    run = Run.objects.create(project=project, method="dpo", state=Run.State.COMPLETE)
    with transaction.atomic():
        changes = next_round.after(run=run, policy=candidate)
    assert RoundPlan.from_json(changes["next_round"].plan).train_prompts == 10
    assert "no current policy" in changes["message"]


def test_a_round_that_cannot_be_made_does_not_undo_the_run(project: Project, candidate: Policy) -> None:
    run = Run.objects.create(project=project, method="dpo", state=Run.State.COMPLETE)
    with transaction.atomic():
        changes = next_round.after(run=run, policy=candidate)
    assert "next_round" not in changes
    assert "The next round was not made: the project has no protocol" in changes["message"]


RULE = {"name": "length", "kind": "length", "options": {"target": 60}}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "config"), [("dpo", {}), ("ppo", {"rewards": [RULE]})])
def test_a_trained_policy_is_sampled_and_judged_next_without_a_hand(
    method: str, config: dict[str, Any], project: Project, ann: User, django_capture_on_commit_callbacks: Any
) -> None:
    stage.make_sampled_round(project, train=8, test=4)
    Round.objects.update(state=Round.State.CLOSED)
    one: TrainingWorker = stage.make_worker()
    run = stage.make_queued_run(project, ann, method, then_next_round=True, config=config)
    with django_capture_on_commit_callbacks(execute=True):
        stage.work_through(one, run)
    made = run.next_round
    assert made is not None and run.state == Run.State.COMPLETE
    sampling = Run.objects.get(round=made)
    stage.work_through(one, sampling)
    made.refresh_from_db()
    assert (sampling.state, made.state) == (Run.State.COMPLETE, Round.State.OPEN)
    writers = {completion.policy for task in made.tasks.all() for completion in task.completions.all()}
    assert {made.new_policy, made.old_policy} == writers


@pytest.mark.slow
def test_a_run_may_end_without_a_next_round(project: Project, ann: User) -> None:
    stage.make_sampled_round(project)
    Round.objects.update(state=Round.State.CLOSED)
    run = stage.make_queued_run(project, ann, then_next_round=False)
    stage.work_through(stage.make_worker(), run)
    assert (run.state, run.next_round) == (Run.State.COMPLETE, None)
