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
from labeling.models import Assignment, Label, LostLease, RaterProgress, Round, Skip
from labeling.rounds import close_round, progress, rater_progress, reopen_round
from tests import factories
from tests.labeling.open_round import TIE, make_open_round

pytestmark = pytest.mark.slow

RATERS, TASKS, OVERLAP = 3, 3, 2
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

    @rule(
        n=rater_numbers, then=st.sampled_from(["save", "save", "skip", "expire", "log out", "wait", "renew"])
    )
    def work_on_a_task(self, n: int, then: str) -> None:
        try:
            taken = next_assignment(round=self.round, rater=self.raters[n])
        except RoundClosed:
            assert self.is_closed()
            return
        assert not self.is_closed()
        self.see(n, taken)
        if taken is None:
            return
        match then:
            case "save":
                self.send(n, *self.shown[n][-1])
            case "skip":
                skip(assignment_id=taken.pk, rater=self.raters[n], reason="hard")
                assert not self.holds(n, taken.pk)
            case "expire":
                long_ago = timezone.now() - timedelta(hours=1)
                Assignment.objects.filter(pk=taken.pk).update(leased_until=long_ago)
            case "log out":
                assert give_back_all(self.raters[n]) == 1
                assert not self.holds(n, taken.pk)
            case "renew":
                assert renew(assignment_id=taken.pk, rater=self.raters[n])

    @precondition(lambda self: not self.is_closed())
    @rule(n=rater_numbers)
    def judge_all_that_is_left(self, n: int) -> None:
        for _ in range(TASKS + 1):
            taken = next_assignment(round=self.round, rater=self.raters[n])
            self.see(n, taken)
            if taken is None:
                return
            self.send(n, *self.shown[n][-1])
        raise AssertionError("more tasks than there are")

    @precondition(lambda self: any(self.shown))
    @rule(pick=any_showing, then=st.sampled_from(["save", "save under a new key", "skip", "renew"]))
    def use_a_page_that_was_left_open(self, pick: int, then: str) -> None:
        forms = [(n, *form) for n, own in enumerate(self.shown) for form in own]
        n, assignment, key = forms[pick % len(forms)]
        held = self.holds(n, assignment)
        match then:
            case "save":
                self.send(n, assignment, key)
            case "save under a new key":
                self.send(n, assignment, uuid.uuid4())
            case "skip":
                try:
                    skip(assignment_id=assignment, rater=self.raters[n], reason="hard")
                except (LeaseLost, RoundClosed):
                    assert not held
                assert not self.holds(n, assignment)
            case "renew":
                assert renew(assignment_id=assignment, rater=self.raters[n]) == held

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

    @rule()
    def close_and_perhaps_reopen_later(self) -> None:
        if self.is_closed():
            reopen_round(self.round)
        else:
            close_round(self.round)

    @invariant()
    def everything_holds(self) -> None:
        slots = list(Assignment.objects.select_related("label", "rater"))
        self.a_task_has_its_slots_and_no_rater_twice(slots)
        self.what_was_acknowledged_counts_until_undone(slots)
        self.counters_are_right(slots)
        self.nothing_behind_a_cursor_is_of_use_to_its_rater(slots)
        self.a_closed_round_holds_nothing_back(slots)

    def a_task_has_its_slots_and_no_rater_twice(self, slots: list[Assignment]) -> None:
        assert set(Counter(slot.task_id for slot in slots).values()) == {OVERLAP}
        judged = Counter((slot.task_id, slot.rater_id) for slot in slots if slot.state == "done")
        assert set(judged.values()) <= {1}

    def what_was_acknowledged_counts_until_undone(self, slots: list[Assignment]) -> None:
        counting = [slot.label for slot in slots if slot.label is not None]
        assert {label.pk for label in counting} == set(self.acknowledged.values()) - self.undone
        stored = Label.objects.filter(value__isnull=False).values_list("pk", flat=True)
        assert set(stored) == set(self.acknowledged.values())
        for slot in slots:
            if slot.label is not None:
                assert (slot.label.assignment_id, slot.label.rater_id) == (slot.pk, slot.rater_id)
                assert slot.label.shown == slot.shown

    def counters_are_right(self, slots: list[Assignment]) -> None:
        by_rater = Counter(slot.rater.username for slot in slots if slot.state == "done" and slot.rater)
        so_far = progress(self.round)
        assert so_far.by_rater == dict(by_rater)
        assert (so_far.done, so_far.wanted) == (sum(by_rater.values()), TASKS * OVERLAP)
        positions = {slot.position for slot in slots}
        assert len(positions) == TASKS * OVERLAP
        assert max(positions) < Round.objects.get().next_position

    def nothing_behind_a_cursor_is_of_use_to_its_rater(self, slots: list[Assignment]) -> None:
        for row in RaterProgress.objects.all():
            lost = LostLease.objects.filter(rater=row.rater_id).values_list("task", flat=True)
            passed = {slot.task_id for slot in slots if slot.state == "open" and slot.position <= row.cursor}
            assert passed <= self.met(row.rater_id) | set(lost)

    def a_closed_round_holds_nothing_back(self, slots: list[Assignment]) -> None:
        states = {slot.state for slot in slots}
        assert not states & ({"open", "leased"} if self.is_closed() else {"withdrawn"})

    def send(self, n: int, assignment: int, key: uuid.UUID) -> None:
        must_succeed = self.holds(n, assignment) or key in self.acknowledged
        try:
            label, following = save_and_next(
                assignment=Assignment.objects.get(pk=assignment),
                rater=self.raters[n],
                value=TIE,
                key=key,
                seconds=1,
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
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
            database=None,
        ),
    )
