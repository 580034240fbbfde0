"""Which task a rater gets next: leases, skipping, expiry, log-out."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from labeling import assignment as assignments
from labeling.assignment import LeaseLost, next_assignment, renew, skip
from labeling.models import Assignment, LostLease, Project, RaterProgress, Round, Skip
from labeling.rounds import RoundClosed, RoundNotReady, close_round
from tests.labeling.open_round import make_open_round, make_waiting_round, say_tie


@pytest.fixture
def round(project: Project) -> Round:
    return make_open_round(project, tasks=3, overlap=1)


def take(round: Round, rater: User) -> Assignment:
    taken = next_assignment(round=round, rater=rater)
    assert taken is not None
    return taken


def let_leases_expire(round: Round) -> None:
    Assignment.objects.filter(round=round, state="leased").update(
        leased_until=timezone.now() - timedelta(seconds=1)
    )


def has_expired(taken: Assignment) -> bool:
    until = Assignment.objects.get(pk=taken.pk).leased_until
    return until is not None and until < timezone.now()


def test_asking_again_gives_the_same_task(round: Round, ann: User) -> None:
    assert take(round, ann).pk == take(round, ann).pk
    assert Assignment.objects.filter(state="leased").count() == 1


def test_two_raters_get_different_tasks_when_one_label_is_wanted(round: Round, ann: User, bo: User) -> None:
    assert take(round, ann).task_id != take(round, bo).task_id


def test_two_raters_get_the_same_task_when_two_labels_are_wanted(
    project: Project, ann: User, bo: User
) -> None:
    round = make_open_round(project, tasks=3, overlap=2)
    assert take(round, ann).task_id == take(round, bo).task_id


def test_the_order_on_screen_is_stored_and_varies(project: Project, ann: User) -> None:
    round = make_open_round(project, tasks=40, overlap=1)
    first_written_left = 0
    for _ in range(40):
        taken = take(round, ann)
        written = sorted(c.pk for c in taken.task.completions.all())
        assert sorted(taken.shown) == written
        assert Assignment.objects.get(pk=taken.pk).shown == taken.shown
        first_written_left += taken.shown == written
        say_tie(taken, ann)
    assert 5 < first_written_left < 35  # chance of a failure: 1 in 1.6 million


def test_a_lease_lasts_as_long_as_the_settings_say(round: Round, ann: User, settings: Any) -> None:
    settings.LEASE_SECONDS = 90
    before = timezone.now()
    until = take(round, ann).leased_until
    assert until is not None
    assert 85 < (until - before).total_seconds() < 95


def test_renewing_lengthens_the_lease_of_its_rater_only(round: Round, ann: User, bo: User) -> None:
    taken = take(round, ann)
    let_leases_expire(round)
    assert not renew(assignment_id=taken.pk, rater=bo)
    assert has_expired(taken)
    assert renew(assignment_id=taken.pk, rater=ann)
    assert not has_expired(taken)


def test_loading_the_page_again_renews_the_lease(round: Round, ann: User) -> None:
    taken = take(round, ann)
    let_leases_expire(round)
    take(round, ann)
    assert not has_expired(taken)


def test_an_expired_lease_goes_to_somebody_else_once_nothing_else_is_left(
    round: Round, ann: User, bo: User
) -> None:
    held = take(round, ann)
    let_leases_expire(round)
    for _ in range(2):
        other = take(round, bo)
        assert other.pk != held.pk
        say_tie(other, bo)
    assert take(round, bo).pk == held.pk
    assert not renew(assignment_id=held.pk, rater=ann)
    assert LostLease.objects.get().shown == held.shown


def test_a_lease_that_has_not_expired_stays_with_its_rater(round: Round, ann: User, bo: User) -> None:
    take(round, ann)
    for _ in range(2):
        say_tie(take(round, bo), bo)
    assert next_assignment(round=round, rater=bo) is None


def test_a_skipped_task_goes_to_somebody_else_and_never_comes_back(round: Round, ann: User, bo: User) -> None:
    skipped = take(round, ann)
    skip(assignment_id=skipped.pk, rater=ann, reason="not English\x00")
    assert Skip.objects.get().reason == "not English"
    for _ in range(2):
        say_tie(take(round, ann), ann)
    assert next_assignment(round=round, rater=ann) is None
    assert take(round, bo).task_id == skipped.task_id


def test_skipping_twice_is_skipping_once(round: Round, ann: User) -> None:
    skipped = take(round, ann)
    for _ in range(2):
        skip(assignment_id=skipped.pk, rater=ann, reason="hard")
    assert Skip.objects.count() == 1


def test_a_task_of_somebody_else_cannot_be_skipped(round: Round, ann: User, bo: User, zed: User) -> None:
    held = take(round, ann)
    take(round, bo)
    for other in (bo, zed):
        with pytest.raises(LeaseLost):
            skip(assignment_id=held.pk, rater=other, reason="mine now")
    assert take(round, ann).pk == held.pk
    assert not Skip.objects.exists()


def test_logging_out_gives_the_lease_back(client: Client, round: Round, ann: User, bo: User) -> None:
    client.force_login(ann)
    held = take(round, ann)
    client.logout()
    assert Assignment.objects.get(pk=held.pk).state == "open"
    tasks = set()
    while (taken := next_assignment(round=round, rater=bo)) is not None:
        tasks.add(taken.task_id)
        say_tie(taken, bo)
    assert held.task_id in tasks


def test_giving_back_touches_no_other_rater(round: Round, ann: User, bo: User) -> None:
    take(round, ann)
    of_bo = take(round, bo)
    assert assignments.give_back_all(ann) == 1
    assert assignments.give_back_all(ann) == 0
    assert take(round, bo).pk == of_bo.pk


def test_nobody_gets_a_task_of_a_round_that_is_not_open(round: Round, project: Project, ann: User) -> None:
    waiting = make_waiting_round(project, tasks=2)
    with pytest.raises(RoundNotReady):
        next_assignment(round=waiting, rater=ann)
    close_round(round)
    with pytest.raises(RoundClosed):
        next_assignment(round=round, rater=ann)


def test_a_rater_meets_all_tasks_before_anything_comes_back(project: Project, ann: User) -> None:
    round = make_open_round(project, tasks=12, overlap=2)
    seen = []
    while (taken := next_assignment(round=round, rater=ann)) is not None:
        seen.append(taken.task_id)
        say_tie(taken, ann)
    assert len(seen) == len(set(seen)) == 12


def test_the_search_starts_behind_the_cursor(project: Project, ann: User, bo: User) -> None:
    round = make_open_round(project, tasks=10, overlap=1)
    for _ in range(4):
        say_tie(take(round, ann), ann)
    held = take(round, bo)
    assert RaterProgress.objects.get(rater=ann).cursor == 3
    assert RaterProgress.objects.get(rater=bo).cursor == held.position == 4


def test_a_slot_left_open_behind_the_cursor_is_found_in_the_end(
    project: Project, ann: User, bo: User
) -> None:
    """When a transaction that took a slot fails, others have passed it by already."""
    round = make_open_round(project, tasks=3, overlap=1)
    RaterProgress.objects.create(round=round, rater=ann, cursor=1)
    tasks = set()
    while (taken := next_assignment(round=round, rater=ann)) is not None:
        tasks.add(taken.task_id)
        say_tie(taken, ann)
    assert len(tasks) == 3


@pytest.mark.parametrize("tasks", [20, 400])
def test_a_next_task_costs_the_same_number_of_queries_however_many_tasks_there_are(
    project: Project, ann: User, tasks: int, django_assert_num_queries: Any
) -> None:
    round = make_open_round(project, tasks=tasks, overlap=2)
    say_tie(take(round, ann), ann)
    with django_assert_num_queries(8):  # two of them are the savepoint that a test makes of a transaction
        taken = take(round, ann)
        assert taken.task.prompt.messages
        assert len(taken.task.completions.all()) == 2


def test_a_rater_in_two_rounds_holds_a_task_in_each(project: Project, ann: User) -> None:
    rounds = [make_open_round(project, tasks=2, overlap=1) for _ in range(2)]
    assert {take(round, ann).round_id for round in rounds} == {round.pk for round in rounds}
    assert assignments.give_back_all(ann) == 2
