"""Saving and undoing labels: what is accepted, counted once, and never lost."""

import math
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from labeling.assignment import LeaseLost, give_back_all, next_assignment, skip
from labeling.labels import (
    AlreadyLabelled,
    InvalidLabel,
    NothingToUndo,
    RoundClosed,
    save_and_next,
    save_label,
    undo,
    validate,
)
from labeling.models import Assignment, Label, Project, Protocol, Round
from labeling.rounds import close_round, rater_progress, reopen_round
from tests.labeling.open_round import TIE, make_open_round, say_tie


@pytest.fixture
def round(project: Project) -> Round:
    return make_open_round(project, tasks=4, overlap=1)


def take(round: Round, rater: User) -> Assignment:
    taken = next_assignment(round=round, rater=rater)
    assert taken is not None
    return taken


def save(assignment: Assignment, rater: User, value: object = TIE, key: uuid.UUID | None = None) -> Label:
    key = key or uuid.uuid4()
    return save_label(assignment=assignment, rater=rater, value=value, key=key, seconds=3.5)


def test_a_label_keeps_what_was_said_and_what_was_shown(round: Round, ann: User) -> None:
    taken = take(round, ann)
    value = {"outcome": "preferred", "preferred": taken.shown[1], "strength": 3}
    label = save(taken, ann, value)
    stored = Label.objects.get(pk=label.pk)
    assert (stored.value, stored.shown, stored.seconds) == (value, taken.shown, 3.5)
    assert (stored.rater, stored.protocol) == (ann, round.protocol)
    done = Assignment.objects.get(pk=taken.pk)
    assert (done.state, done.rater, done.label) == ("done", ann, label)


def test_the_next_task_comes_with_the_save(round: Round, ann: User) -> None:
    first = take(round, ann)
    label, following = save_and_next(assignment=first, rater=ann, value=TIE, key=uuid.uuid4(), seconds=1)
    assert following is not None
    assert following.task_id != first.task_id
    assert take(round, ann).pk == following.pk
    assert label.counts_for == first


def test_after_the_last_task_nothing_comes(project: Project, ann: User) -> None:
    round = make_open_round(project, tasks=1)
    first = take(round, ann)
    _, following = save_and_next(assignment=first, rater=ann, value=TIE, key=uuid.uuid4(), seconds=1)
    assert following is None


def test_a_save_and_the_next_task_cost_the_same_however_many_tasks_there_are(
    project: Project, ann: User, django_assert_num_queries: Any
) -> None:
    for tasks in (10, 300):
        first = take(make_open_round(project, tasks=tasks, overlap=2), ann)
        with django_assert_num_queries(11):  # two of them are the savepoint that a test makes
            _, following = save_and_next(assignment=first, rater=ann, value=TIE, key=uuid.uuid4(), seconds=1)
            assert following is not None
            assert following.task.prompt.html
            assert len(following.task.completions.all()) == 2


def test_a_double_click_is_one_label_and_one_next_task(round: Round, ann: User) -> None:
    first, key = take(round, ann), uuid.uuid4()
    twice = [save_and_next(assignment=first, rater=ann, value=TIE, key=key, seconds=1) for _ in range(2)]
    assert len({label.pk for label, _ in twice}) == 1
    assert len({following.pk for _, following in twice if following}) == 1
    assert Label.objects.count() == 1
    assert rater_progress(round, ann).mine == 1


def test_a_second_tab_cannot_judge_the_same_task_again(round: Round, ann: User) -> None:
    taken = take(round, ann)
    save(taken, ann)
    with pytest.raises(AlreadyLabelled):
        save(taken, ann)
    assert Label.objects.count() == 1


def test_the_key_of_one_task_does_not_answer_for_another(round: Round, ann: User, bo: User) -> None:
    key = uuid.uuid4()
    save(take(round, ann), ann, key=key)
    with pytest.raises(InvalidLabel, match="for another task"):
        save(take(round, ann), ann, key=key)
    with pytest.raises(InvalidLabel, match="for another task"):
        save(take(round, bo), bo, key=key)
    assert Label.objects.count() == 1


def test_nobody_saves_on_the_task_of_another(round: Round, ann: User, bo: User, zed: User) -> None:
    taken = take(round, ann)
    take(round, bo)
    for other in (bo, zed):
        with pytest.raises(LeaseLost):
            save(taken, other)
    assert not Label.objects.exists()


def test_nobody_saves_on_an_open_task_that_was_never_theirs(round: Round, ann: User) -> None:
    held = take(round, ann)
    never_held = Assignment.objects.filter(state="open").exclude(pk=held.pk)[0]
    with pytest.raises(LeaseLost):
        save(never_held, ann)


def test_a_lease_that_expired_but_that_nobody_took_still_accepts_its_label(round: Round, ann: User) -> None:
    taken = take(round, ann)
    Assignment.objects.update(leased_until=timezone.now() - timedelta(hours=1))
    assert save(taken, ann).counts_for == taken


def test_a_late_label_takes_the_slot_that_was_given_back(round: Round, ann: User) -> None:
    held = take(round, ann)
    give_back_all(ann)
    label = save(held, ann)
    assert (label.counts_for, label.shown) == (held, held.shown)
    assert rater_progress(round, ann).mine == 1


def test_a_late_label_takes_another_slot_when_its_own_went_to_somebody(
    project: Project, ann: User, bo: User, mia: User
) -> None:
    round = make_open_round(project, tasks=1, overlap=2)
    held = take(round, ann)
    give_back_all(ann)
    other_slot = take(round, bo)
    assert take(round, mia).pk == held.pk
    give_back_all(bo)
    label = save(held, ann)
    assert (label.counts_for, label.shown) == (other_slot, held.shown)


def test_a_late_label_is_refused_when_others_have_all_slots(round: Round, ann: User, bo: User) -> None:
    held = take(round, ann)
    give_back_all(ann)
    while (taken := take(round, bo)).pk != held.pk:
        save(taken, bo)
    with pytest.raises(LeaseLost, match="somebody else"):
        save(held, ann)
    assert not Label.objects.filter(rater=ann).exists()
    save(taken, bo)


def test_a_late_label_is_counted_once(round: Round, ann: User) -> None:
    held, key = take(round, ann), uuid.uuid4()
    give_back_all(ann)
    assert save(held, ann, key=key) == save(held, ann, key=key)
    assert rater_progress(round, ann).mine == 1


def test_a_late_label_leaves_the_raters_new_task_to_them(round: Round, ann: User) -> None:
    held = take(round, ann)
    give_back_all(ann)
    new = take(round, ann)
    assert new.task_id != held.task_id
    _, following = save_and_next(assignment=held, rater=ann, value=TIE, key=uuid.uuid4(), seconds=1)
    assert following is not None
    assert following.pk == new.pk


def test_a_stale_tab_may_answer_the_task_that_its_rater_holds_again(project: Project, ann: User) -> None:
    round = make_open_round(project, tasks=1, overlap=2)
    held = take(round, ann)
    give_back_all(ann)
    again = take(round, ann)
    assert (again.pk != held.pk, again.task_id == held.task_id) == (True, True)
    label = save(held, ann)
    assert (label.counts_for, label.shown) == (again, held.shown)


def test_a_skipped_task_does_not_accept_a_label_from_another_tab(round: Round, ann: User) -> None:
    taken = take(round, ann)
    skip(assignment_id=taken.pk, rater=ann, reason="hard")
    with pytest.raises(LeaseLost):
        save(taken, ann)


def test_a_closed_round_takes_no_label(round: Round, ann: User) -> None:
    taken = take(round, ann)
    close_round(round)
    with pytest.raises(RoundClosed):
        save(taken, ann)
    with pytest.raises(RoundClosed):
        undo(round=round, rater=ann)
    with pytest.raises(RoundClosed):
        skip(assignment_id=taken.pk, rater=ann, reason="hard")


def test_a_label_saved_before_the_round_closed_is_acknowledged_again_after(round: Round, ann: User) -> None:
    taken, key = take(round, ann), uuid.uuid4()
    label = save(taken, ann, key=key)
    close_round(round)
    assert save(taken, ann, key=key) == label


def test_a_page_left_open_over_closing_and_reopening_can_still_be_saved(round: Round, ann: User) -> None:
    taken = take(round, ann)
    close_round(round)
    reopen_round(round)
    assert save(taken, ann).shown == taken.shown


def test_undo_gives_the_task_and_the_old_answer_back(round: Round, ann: User) -> None:
    taken = take(round, ann)
    label = save(taken, ann)
    held = take(round, ann)
    again, old = undo(round=round, rater=ann)
    assert (again.pk, again.shown, old) == (taken.pk, taken.shown, label)
    assert take(round, ann).pk == taken.pk
    assert Assignment.objects.get(pk=held.pk).state == "open"
    assert rater_progress(round, ann).mine == 0


def test_undo_is_an_event_and_nothing_is_erased(round: Round, ann: User) -> None:
    taken = take(round, ann)
    first = save(taken, ann)
    undo(round=round, rater=ann)
    second = save(taken, ann, {"outcome": "both_bad"})
    events = Label.objects.filter(assignment=taken)
    assert [event.value for event in events] == [TIE, None, {"outcome": "both_bad"}]
    assert events[1].supersedes == first
    assert Assignment.objects.get(pk=taken.pk).label == second
    assert rater_progress(round, ann).mine == 1


def test_a_late_repeat_of_an_undone_save_does_not_bring_it_back(round: Round, ann: User) -> None:
    taken, key = take(round, ann), uuid.uuid4()
    save(taken, ann, key=key)
    undo(round=round, rater=ann)
    label, following = save_and_next(assignment=taken, rater=ann, value=TIE, key=key, seconds=1)
    assert label.value == TIE
    assert following is not None
    assert following.pk == taken.pk
    assert Assignment.objects.get(pk=taken.pk).state == "leased"
    assert rater_progress(round, ann).mine == 0


def test_undo_goes_back_step_by_step(round: Round, ann: User) -> None:
    tasks = [take(round, ann)]
    say_tie(tasks[0], ann)
    tasks.append(take(round, ann))
    say_tie(tasks[1], ann)
    assert [undo(round=round, rater=ann)[0].pk for _ in tasks] == [tasks[1].pk, tasks[0].pk]
    with pytest.raises(NothingToUndo):
        undo(round=round, rater=ann)


def test_undo_leaves_other_raters_and_rounds_alone(
    round: Round, project: Project, ann: User, bo: User
) -> None:
    save(take(round, bo), bo)
    other = make_open_round(project, tasks=2)
    save(take(other, ann), ann)
    with pytest.raises(NothingToUndo):
        undo(round=round, rater=ann)
    assert Assignment.objects.filter(state="done").count() == 2


@pytest.mark.parametrize(
    ("seconds", "stored"), [(-1, 0), (math.nan, 0), (math.inf, 0), (1e9, 86_400), (2, 2)]
)
def test_time_on_task_is_kept_plausible(round: Round, ann: User, seconds: float, stored: float) -> None:
    taken = take(round, ann)
    label = save_label(assignment=taken, rater=ann, value=TIE, key=uuid.uuid4(), seconds=seconds)
    assert label.seconds == stored


def test_an_invalid_label_leaves_the_task_with_its_rater(round: Round, ann: User) -> None:
    taken = take(round, ann)
    with pytest.raises(InvalidLabel):
        save(taken, ann, {"outcome": "preferred", "preferred": 10**9, "strength": 1})
    assert take(round, ann).pk == taken.pk
    assert not Label.objects.exists()


RATING = Protocol(
    kind="rating",
    options={
        "criteria": [{"key": "kind", "name": "Kindness"}, {"key": "true", "name": "Truth"}],
        "low": 1,
        "high": 5,
    },
)
COMPARISON = Protocol(kind="comparison", options={"strengths": 4, "tie": True, "both_bad": True})
FORCED = Protocol(kind="comparison", options={"strengths": 2, "tie": False, "both_bad": False})
RANKING = Protocol(kind="ranking", options={"ties": True, "partial": True})
STRICT = Protocol(kind="ranking", options={"ties": False, "partial": False})


@pytest.mark.parametrize(
    ("protocol", "given", "stored"),
    [
        (RATING, {"scores": {"true": 5, "kind": 1}}, {"scores": {"kind": 1, "true": 5}}),
        (COMPARISON, {"outcome": "tie", "strength": 3}, {"outcome": "tie"}),
        (COMPARISON, {"outcome": "both_bad"}, {"outcome": "both_bad"}),
        (FORCED, {"outcome": "preferred", "preferred": 8, "strength": 2}, None),
        (RANKING, {"ranks": {"9": 4, "7": 2}}, {"ranks": {"7": 1, "9": 2}}),
        (RANKING, {"ranks": {7: 3, 8: 3, 9: 1}}, {"ranks": {"9": 1, "7": 2, "8": 2}}),
        (STRICT, {"ranks": {"7": 1, "8": 3, "9": 2}}, {"ranks": {"7": 1, "9": 2, "8": 3}}),
    ],
)
def test_a_value_is_stored_in_one_form(
    protocol: Protocol, given: dict[str, Any], stored: dict[str, Any] | None
) -> None:
    assert validate(given, protocol, [7, 8, 9]) == (stored or given)


@pytest.mark.parametrize(
    ("protocol", "given", "message"),
    [
        (RATING, None, "empty"),
        (RATING, {}, "Choose a score"),
        (RATING, {"scores": {"kind": 3}}, "Truth"),
        (RATING, {"scores": {"kind": 3, "true": 6}}, "from 1 to 5"),
        (RATING, {"scores": {"kind": 3, "true": 0}}, "from 1 to 5"),
        (RATING, {"scores": {"kind": True, "true": 3}}, "whole number"),
        (RATING, {"scores": {"kind": 2.5, "true": 3}}, "whole number"),
        (RATING, {"scores": {"kind": 2, "true": 3, "other": 3}}, "no criterion 'other'"),
        (COMPARISON, {}, "Choose the better"),
        (COMPARISON, {"outcome": "left"}, "Choose the better"),
        (COMPARISON, {"outcome": "preferred", "preferred": 6, "strength": 1}, "of this task"),
        (COMPARISON, {"outcome": "preferred", "preferred": 7}, "from 1 to 4"),
        (COMPARISON, {"outcome": "preferred", "preferred": 7, "strength": 5}, "from 1 to 4"),
        (COMPARISON, {"outcome": "preferred", "preferred": 7, "strength": 0}, "from 1 to 4"),
        (FORCED, {"outcome": "tie"}, "not allowed"),
        (FORCED, {"outcome": "both_bad"}, "not allowed"),
        (RANKING, {}, "Rank the completions"),
        (RANKING, {"ranks": {}}, "at least two"),
        (RANKING, {"ranks": {"7": 1}}, "at least two"),
        (RANKING, {"ranks": {"7": 1, "6": 2}}, "does not belong"),
        (RANKING, {"ranks": {"7": 1, "8": "2"}}, "whole numbers"),
        (RANKING, {"ranks": {"7": 0, "8": 1}}, "from 1"),
        (STRICT, {"ranks": {"7": 1, "8": 2}}, "all the completions"),
        (STRICT, {"ranks": {"7": 1, "8": 2, "9": 2}}, "Ties"),
    ],
)
def test_a_value_that_the_protocol_does_not_allow_is_refused_with_the_reason(
    protocol: Protocol, given: object, message: str
) -> None:
    with pytest.raises(InvalidLabel, match=message):
        validate(given, protocol, [7, 8, 9])
