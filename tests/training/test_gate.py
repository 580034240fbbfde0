"""The gate: people's preference, with its whole interval, or a manager with a reason."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from labeling.models import Policy, Project, Round
from labeling.rounds import close_round, reopen_round
from tests import factories
from tests.labeling.judged import make_prompt, make_round, make_task, vote
from tests.training import stage
from training import gate
from training.models import GateDecision

State = Policy.State


@pytest.fixture
def old(project: Project) -> Policy:
    return stage.make_starter(project)


@pytest.fixture
def new(project: Project) -> Policy:
    policy = factories.make_policy(project, "candidate", State.CANDIDATE)
    policy.location = "org/candidate"
    policy.save()
    return policy


def judged_round(old: Policy, new: Policy, rater: User, votes: Sequence[int], **fields: Any) -> Round:
    """A closed round of gate tasks; a vote above 0 is for the new policy."""
    round = make_round(old.project, old_policy=old, new_policy=new, **fields)
    for number, said in enumerate(votes):
        prompt = make_prompt(old.project, f"Tell me {round.number}.{number}.", "test")
        task = make_task(round, prompt, ["by the new", "by the old"], [new, old], "gate")
        vote(task, rater, said)
    return round


def test_a_policy_that_people_prefer_takes_over(
    project: Project, old: Policy, new: Policy, ann: User
) -> None:
    decision = gate.evaluate_gate(judged_round(old, new, ann, [2] * 16 + [-1] * 4))
    assert decision is not None and decision.promoted
    assert decision.low is not None and decision.high is not None
    assert (decision.win_rate, decision.labels, decision.against) == (0.8, 20, old)
    assert 0.5 < decision.low < 0.8 < decision.high
    new.refresh_from_db()
    project.refresh_from_db()
    assert (new.state, project.current_policy) == (State.PROMOTED, new)


@pytest.mark.parametrize(
    "votes",
    [
        [1] * 11 + [-1] * 9,  # the interval holds one half
        [1, 1, 1],  # three wins of three say little
        [0] * 30,  # nothing but ties
        [-2] * 30,
    ],
)
def test_a_policy_that_is_not_clearly_preferred_stays_a_candidate(
    project: Project, old: Policy, new: Policy, ann: User, votes: list[int]
) -> None:
    decision = gate.evaluate_gate(judged_round(old, new, ann, votes))
    assert decision is not None and not decision.promoted
    assert "does not lie above one half" in decision.reason
    new.refresh_from_db()
    project.refresh_from_db()
    assert (new.state, project.current_policy) == (State.CANDIDATE, old)


def test_labels_of_other_tasks_do_not_count(project: Project, old: Policy, new: Policy, ann: User) -> None:
    round = judged_round(old, new, ann, [1])
    for number in range(20):
        prompt = make_prompt(project, f"Something else {number}", "test")
        vote(make_task(round, prompt, ["one", "other"], [new, old], "test"), ann, 2)
    decision = gate.evaluate_gate(round)
    assert decision is not None
    assert (decision.labels, decision.promoted) == (1, False)


def test_a_gate_that_nobody_judged_is_written_down_as_that(
    project: Project, old: Policy, new: Policy
) -> None:
    round = make_round(project, old_policy=old, new_policy=new)
    make_task(round, make_prompt(project, "Alone", "test"), ["a", "b"], [new, old], "gate")
    decision = gate.evaluate_gate(round)
    assert decision is not None
    assert (decision.promoted, decision.win_rate, decision.labels) == (False, None, 0)
    assert decision.reason.startswith("Nobody compared it")


def test_rounds_without_a_gate_decide_nothing(project: Project, old: Policy, new: Policy, ann: User) -> None:
    assert gate.evaluate_gate(make_round(project, old_policy=old)) is None
    assert gate.evaluate_gate(make_round(project, old_policy=old, new_policy=old)) is None
    assert gate.evaluate_gate(judged_round(old, new, ann, [1] * 30, state=Round.State.OPEN)) is None


def test_the_same_labels_are_decided_once_and_other_labels_again(
    project: Project, old: Policy, new: Policy, ann: User, bo: User
) -> None:
    round = judged_round(old, new, ann, [1] * 10 + [-1] * 6)
    first = gate.evaluate_gate(round)
    assert gate.evaluate_gate(round) == first
    for task in round.tasks.all():
        vote(task, bo, 3)
    second = gate.evaluate_gate(round)
    assert second is not None and first is not None
    assert (first.promoted, second.promoted, second.labels) == (False, True, 32)


def test_what_was_promoted_stays_promoted(
    project: Project, old: Policy, new: Policy, ann: User, bo: User
) -> None:
    round = judged_round(old, new, ann, [2] * 20)
    gate.evaluate_gate(round)
    for task in round.tasks.all():
        vote(task, bo, -4)
    again = gate.evaluate_gate(round)
    project.refresh_from_db()
    assert again is not None and not again.promoted
    assert project.current_policy == new


def test_a_win_over_a_policy_that_is_no_longer_current_does_not_take_over(
    project: Project, old: Policy, new: Policy, ann: User, mia: User
) -> None:
    round = judged_round(old, new, ann, [2] * 20)
    third = factories.make_policy(project, "third", State.CANDIDATE)
    third.location = "org/third"
    third.save()
    gate.promote(policy=third, by=mia, reason="It is kinder.")
    decision = gate.evaluate_gate(round)
    project.refresh_from_db()
    assert decision is not None and not decision.promoted
    assert "third is the current policy" in decision.reason
    assert project.current_policy == third


def test_closing_a_round_opens_the_gate(
    old: Policy, new: Policy, ann: User, django_capture_on_commit_callbacks: Any
) -> None:
    round = judged_round(old, new, ann, [2] * 20, state=Round.State.OPEN)
    with django_capture_on_commit_callbacks(execute=True):
        close_round(round)
    assert GateDecision.objects.get().promoted


def test_a_gate_whose_signal_was_lost_is_found_again(old: Policy, new: Policy, ann: User) -> None:
    judged_round(old, new, ann, [2] * 20)
    assert [decision.promoted for decision in gate.evaluate_missing_gates()] == [True]
    assert gate.evaluate_missing_gates() == []


def test_a_round_closed_again_with_other_labels_is_found_although_its_signal_was_lost(
    old: Policy, new: Policy, ann: User, bo: User
) -> None:
    round = judged_round(old, new, ann, [1] * 10 + [-1] * 6, wanted=32, state=Round.State.OPEN)
    close_round(round)  # no commit in this test: nobody hears the signal
    assert [decision.promoted for decision in gate.evaluate_missing_gates()] == [False]
    reopen_round(round)
    for task in round.tasks.all():
        vote(task, bo, 3)
    close_round(round)
    assert [decision.promoted for decision in gate.evaluate_missing_gates()] == [True]
    assert gate.evaluate_missing_gates() == []


def test_a_round_closed_again_with_the_same_labels_is_looked_at_once(
    old: Policy, new: Policy, ann: User
) -> None:
    round = judged_round(old, new, ann, [1] * 3, wanted=3, state=Round.State.OPEN)
    close_round(round)
    first = gate.evaluate_missing_gates()
    reopen_round(round)
    close_round(round)
    assert gate.evaluate_missing_gates() == first
    assert gate.evaluate_missing_gates() == []


def test_the_project_is_locked_before_its_policies_as_where_a_policy_is_chosen(
    project: Project, old: Policy, new: Policy, ann: User, mia: User
) -> None:
    round = judged_round(old, new, ann, [2] * 20)
    decisions: list[Callable[[], object]] = [
        lambda: gate.evaluate_gate(round),
        lambda: gate.promote(policy=old, by=mia, reason="It was kinder."),
    ]
    for decide in decisions:
        with CaptureQueriesContext(connection) as queries:
            decide()
        tables = [query["sql"].partition(' FROM "')[2].partition('"')[0] for query in queries]
        found = [name for name in tables if name in ("labeling_project", "labeling_round", "labeling_policy")]
        assert found[0] == "labeling_project"


def test_a_manager_overrides_with_a_reason(project: Project, old: Policy, new: Policy, mia: User) -> None:
    for reason in ("", "  \n "):
        with pytest.raises(gate.PromotionRefused, match="why"):
            gate.promote(policy=new, by=mia, reason=reason)
    decision = gate.promote(policy=new, by=mia, reason=" It writes endings. ")
    project.refresh_from_db()
    assert (decision.decided_by, decision.reason, decision.against) == (mia, "It writes endings.", old)
    assert project.current_policy == new
    assert gate.promote(policy=new, by=mia, reason="twice") == decision


def test_a_policy_of_which_only_completions_are_known_cannot_take_over(project: Project, mia: User) -> None:
    stage.make_starter(project)
    people = factories.make_policy(project, "people", State.EXTERNAL)
    with pytest.raises(gate.PromotionRefused, match="no model"):
        gate.promote(policy=people, by=mia, reason="People write best.")


def test_the_database_refuses_an_override_without_a_reason(new: Policy, mia: User) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        GateDecision.objects.create(policy=new, promoted=True, decided_by=mia, reason="")


def test_a_reopened_round_asks_nothing_of_the_gate_until_it_is_closed(
    project: Project, old: Policy, new: Policy, ann: User
) -> None:
    round = judged_round(old, new, ann, [2] * 20, wanted=20)
    reopen_round(round)
    assert gate.evaluate_gate(round) is None
