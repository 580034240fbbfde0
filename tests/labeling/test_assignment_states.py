"""Random sequences of everything that can happen to an assignment, checked after every step.

Years of bugs of other tools sit where skips, expired locks and overlap meet; so nobody here chooses which
sequences are tried.
"""

import uuid
from collections import Counter
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from labeling.assignment import LeaseLost, give_back_all, next_assignment, renew, skip
from labeling.labels import AlreadyLabelled, NothingToUndo, RoundClosed, save_and_next, undo
from labeling.models import Assignment, Label, RaterProgress, Round, Skip
from labeling.rounds import close_round, progress, rater_progress, reopen_round
from tests import factories
from tests.labeling.open_round import TIE, make_open_round

RATERS, TASKS, OVERLAP = 3, 4, 2
rater_numbers = st.integers(0, RATERS - 1)
any_showing = st.integers(0, 10_000)


class Judging(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        project = factories.make_project()
        self.round = make_open_round(project, tasks=TASKS, overlap=OVERLAP)
        self.raters = [factories.make_user(f"rater{n}", project) for n in range(RATERS)]
        # Every showing of a task that a rater ever had on a screen: forms that may still be sent.
        self.shown: list[list[tuple[int, uuid.UUID]]] = [[] for _ in range(RATERS)]
        self.acknowledged: dict[uuid.UUID, int] = {}  # label by key
        self.undone: set[int] = set()

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.transaction.__exit__(None, None, None)

    @rule(n=rater_numbers)
    def ask_for_a_task(self, n: int) -> None:
        try:
            taken = next_assignment(round=self.round, rater=self.raters[n])
        except RoundClosed:
            assert self.is_closed()
            return
        assert not self.is_closed()
        self.see(n, taken)

    @rule(n=rater_numbers, which=any_showing)
    def save(self, n: int, which: int) -> None:
        if not self.shown[n]:
            return
        assignment, key = self.shown[n][which % len(self.shown[n])]
        self.send(n, assignment, key)

    @rule(n=rater_numbers)
    def save_what_was_shown_last(self, n: int) -> None:
        if self.shown[n]:
            self.send(n, *self.shown[n][-1])

    @rule(n=rater_numbers)
    def save_under_a_new_key_from_another_tab(self, n: int) -> None:
        if self.shown[n]:
            self.send(n, self.shown[n][-1][0], uuid.uuid4())

    @rule(n=rater_numbers, which=st.integers(0, TASKS * OVERLAP - 1))
    def save_any_task_of_the_round(self, n: int, which: int) -> None:
        self.send(n, Assignment.objects.order_by("pk")[which].pk, uuid.uuid4())

    @rule(n=rater_numbers)
    def take_back(self, n: int) -> None:
        counted = rater_progress(self.round, self.raters[n]).mine
        try:
            taken, label = undo(round=self.round, rater=self.raters[n])
        except NothingToUndo:
            assert counted == 0
        except RoundClosed:
            assert self.is_closed()
        else:
            assert label.rater_id == self.raters[n].pk
            self.undone.add(label.pk)
            self.see(n, taken)

    @rule(n=rater_numbers, which=any_showing)
    def pass_by(self, n: int, which: int) -> None:
        if not self.shown[n]:
            return
        assignment, _ = self.shown[n][which % len(self.shown[n])]
        held = self.holds(n, assignment)
        try:
            skip(assignment_id=assignment, rater=self.raters[n], reason="hard")
        except (LeaseLost, RoundClosed):
            assert not held
        assert not self.holds(n, assignment)

    @rule(n=rater_numbers)
    def let_the_lease_expire(self, n: int) -> None:
        long_ago = timezone.now() - timedelta(hours=1)
        Assignment.objects.filter(rater=self.raters[n], state="leased").update(leased_until=long_ago)

    @rule(n=rater_numbers, which=any_showing)
    def keep_the_page_open(self, n: int, which: int) -> None:
        if self.shown[n]:
            assignment, _ = self.shown[n][which % len(self.shown[n])]
            assert renew(assignment_id=assignment, rater=self.raters[n]) == self.holds(n, assignment)

    @rule(n=rater_numbers)
    def log_out(self, n: int) -> None:
        give_back_all(self.raters[n])
        assert not Assignment.objects.filter(rater=self.raters[n], state="leased").exists()

    @precondition(lambda self: not self.is_closed())
    @rule(seriously=st.integers(0, 3))
    def close(self, seriously: int) -> None:
        if seriously == 0:  # else most sequences would be about closed rounds
            close_round(self.round)

    @precondition(lambda self: self.is_closed())
    @rule()
    def reopen(self) -> None:
        reopen_round(self.round)

    @invariant()
    def a_task_has_its_slots_and_no_rater_twice(self) -> None:
        slots = Assignment.objects.all()
        assert set(Counter(slots.values_list("task", flat=True)).values()) == {OVERLAP}
        judged = Counter(slots.filter(state="done").values_list("task", "rater"))
        assert set(judged.values()) <= {1}

    @invariant()
    def what_was_acknowledged_counts_until_undone(self) -> None:
        counting = set(Assignment.objects.filter(state="done").values_list("label", flat=True))
        assert counting == set(self.acknowledged.values()) - self.undone
        stored = Label.objects.filter(value__isnull=False)
        assert set(stored.values_list("pk", flat=True)) == set(self.acknowledged.values())

    @invariant()
    def labels_stand_where_they_count(self) -> None:
        for slot in Assignment.objects.filter(state="done").select_related("label"):
            assert slot.label is not None
            assert (slot.label.rater_id, slot.label.assignment_id) == (slot.rater_id, slot.pk)
            assert slot.label.shown == slot.shown

    @invariant()
    def counters_are_right(self) -> None:
        by_rater = Counter(Assignment.objects.filter(state="done").values_list("rater__username", flat=True))
        so_far = progress(self.round)
        assert so_far.by_rater == dict(by_rater)
        assert (so_far.done, so_far.wanted) == (sum(by_rater.values()), TASKS * OVERLAP)

    @invariant()
    def nothing_behind_a_cursor_is_of_use_to_its_rater(self) -> None:
        for row in RaterProgress.objects.all():
            passed = Assignment.objects.filter(state="open", position__lte=row.cursor)
            assert set(passed.values_list("task", flat=True)) <= self.met(row.rater_id)

    @invariant()
    def positions_are_unique_and_given_out_in_rising_order(self) -> None:
        positions = list(Assignment.objects.values_list("position", flat=True))
        assert len(set(positions)) == len(positions)
        assert max(positions) < Round.objects.get().next_position

    @invariant()
    def a_closed_round_holds_nothing_back(self) -> None:
        if self.is_closed():
            assert not Assignment.objects.filter(state__in=["open", "leased"]).exists()
        else:
            assert not Assignment.objects.filter(state="withdrawn").exists()

    def send(self, n: int, assignment: int, key: uuid.UUID) -> None:
        must_succeed = self.holds(n, assignment) or key in self.acknowledged
        try:
            label, following = save_and_next(
                assignment_id=assignment, rater=self.raters[n], value=TIE, key=key, seconds=1
            )
        except (LeaseLost, AlreadyLabelled, RoundClosed):
            assert not must_succeed
            return
        assert self.acknowledged.setdefault(key, label.pk) == label.pk
        if not self.is_closed():
            self.see(n, following)

    def see(self, n: int, taken: Assignment | None) -> None:
        if taken is None:
            self.nothing_was_left_for(self.raters[n])
            return
        assert self.holds(n, taken.pk)
        assert sorted(taken.shown) == sorted(c.pk for c in taken.task.completions.all())
        assert not Skip.objects.filter(task=taken.task_id, rater=self.raters[n]).exists()
        self.shown[n].append((taken.pk, uuid.uuid4()))

    def nothing_was_left_for(self, rater: User) -> None:
        expired = Assignment.objects.filter(state="leased", leased_until__lt=timezone.now())
        assert not expired.exists()
        open_tasks = Assignment.objects.filter(state="open").values_list("task", flat=True)
        assert set(open_tasks) <= self.met(rater.pk)

    def met(self, rater_id: int) -> set[int]:
        own = Assignment.objects.filter(rater=rater_id).values_list("task", flat=True)
        return set(own) | set(Skip.objects.filter(rater=rater_id).values_list("task", flat=True))

    def holds(self, n: int, assignment: int) -> bool:
        mine = Assignment.objects.filter(pk=assignment, rater=self.raters[n], state="leased")
        return mine.exists()

    def is_closed(self) -> bool:
        return Round.objects.get().state == Round.State.CLOSED


@pytest.mark.django_db
def test_no_sequence_of_events_breaks_assignment() -> None:
    run_state_machine_as_test(
        Judging,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
            database=None,
        ),
    )
