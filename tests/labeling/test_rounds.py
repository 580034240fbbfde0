"""Rounds: planned from a seed, filled, opened, closed and opened again."""

from collections import Counter
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.dispatch import Signal

from labeling import signals
from labeling.assignment import next_assignment
from labeling.models import Assignment, Completion, Label, Policy, Project, Protocol, Round, Task
from labeling.rounds import (
    InvalidPlan,
    NewTask,
    RoundClosed,
    RoundNotReady,
    RoundPlan,
    close_round,
    create_round,
    fill,
    open_round,
    progress,
    rater_progress,
    reopen_round,
    wanted,
)
from tests import factories
from tests.labeling.open_round import (
    make_completions,
    make_open_round,
    make_prompts,
    make_waiting_round,
    say_tie,
)


class Heard:
    """Rounds that a signal was sent for, as long as somebody holds this object."""

    def __init__(self, signal: Signal) -> None:
        self.rounds: list[Round] = []
        signal.connect(self.hear)

    def hear(self, sender: type[Round], round: Round, **_: Any) -> None:
        self.rounds.append(round)


@pytest.fixture
def comparison(project: Project) -> Protocol:
    return factories.make_protocol(project)


@pytest.fixture
def starter(project: Project) -> Policy:
    policy = factories.make_policy(project)
    project.current_policy = policy
    project.save()
    return policy


def purposes(round: Round) -> Counter[str]:
    return Counter(Task.objects.filter(round=round).values_list("purpose", flat=True))


def test_a_plan_survives_being_stored() -> None:
    plan = RoundPlan(source="sample", train_prompts=5, gate_prompts=2, overlap=3, temperature=0.7, seed=9)
    assert RoundPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_prompts": 0},
        {"train_prompts": -1, "test_prompts": 5},
        {"train_prompts": 5, "overlap": 0},
        {"train_prompts": 5, "test_overlap": 101},
        {"train_prompts": 5, "max_new_tokens": 0},
        {"train_prompts": 5, "temperature": -0.1},
        {"train_prompts": 5, "source": "elsewhere"},
    ],
)
def test_a_plan_that_no_round_can_follow_is_refused(
    project: Project, comparison: Protocol, wrong: dict[str, Any]
) -> None:
    make_completions(make_prompts(project, 3))
    with pytest.raises(InvalidPlan):
        create_round(project=project, protocol=comparison, plan=RoundPlan(**{"source": "existing", **wrong}))
    assert not Round.objects.exists()


def test_a_round_to_be_sampled_waits_and_asks_for_completions_after_the_commit(
    project: Project, comparison: Protocol, starter: Policy, django_capture_on_commit_callbacks: Any
) -> None:
    make_prompts(project, 4)
    asked = Heard(signals.completions_wanted)
    with django_capture_on_commit_callbacks() as callbacks:
        round = create_round(
            project=project, protocol=comparison, plan=RoundPlan(source="sample", train_prompts=3)
        )
    assert (round.state, round.number, round.old_policy) == ("waiting", 1, starter)
    assert not asked.rounds
    for callback in callbacks:
        callback()
    assert asked.rounds == [round]


def test_a_round_without_prompts_or_policy_is_not_made(
    project: Project, comparison: Protocol, starter: Policy
) -> None:
    plan = RoundPlan(source="sample", train_prompts=3)
    with pytest.raises(RoundNotReady, match="prompts"):
        create_round(project=project, protocol=comparison, plan=plan)
    make_prompts(project, 4)
    project.current_policy = None
    project.save()
    with pytest.raises(RoundNotReady, match="policy"):
        create_round(project=project, protocol=comparison, plan=plan)
    with pytest.raises(RoundNotReady, match="completions"):
        create_round(project=project, protocol=comparison, plan=RoundPlan(source="existing", train_prompts=3))
    assert not Round.objects.exists()


def test_what_a_round_wants_follows_from_its_seed(
    project: Project, comparison: Protocol, starter: Policy
) -> None:
    make_prompts(project, 30)
    make_prompts(project, 10, split="test")
    plan = RoundPlan(source="sample", train_prompts=6, test_prompts=4, gate_prompts=3, seed=1)
    candidate = factories.make_policy(project, "candidate", Policy.State.CANDIDATE)
    round = create_round(project=project, protocol=comparison, plan=plan, new_policy=candidate)
    requests = wanted(round)
    assert requests == wanted(Round.objects.get(pk=round.pk))
    assert Counter(request.purpose for request in requests) == {"train": 6, "test": 4, "gate": 3}
    for request in requests:
        assert request.prompt.split == ("train" if request.purpose == "train" else "test")
        expected = [candidate, starter] if request.purpose == "gate" else [candidate, candidate]
        assert request.policies == expected
    held_out = [request.prompt.pk for request in requests if request.purpose != "train"]
    assert len(set(held_out)) == 7
    round.plan["seed"] = 2
    assert wanted(round) != requests


def test_there_is_no_gate_without_two_policies(
    project: Project, comparison: Protocol, starter: Policy
) -> None:
    make_prompts(project, 5)
    make_prompts(project, 5, split="test")
    plan = RoundPlan(source="sample", train_prompts=2, gate_prompts=3)
    for new_policy in (None, starter):
        round = create_round(project=project, protocol=comparison, plan=plan, new_policy=new_policy)
        assert {request.purpose for request in wanted(round)} == {"train"}


def test_a_round_prefers_prompts_that_no_earlier_one_used(project: Project, comparison: Protocol) -> None:
    make_completions(make_prompts(project, 10))
    rounds = [
        create_round(
            project=project,
            protocol=comparison,
            plan=RoundPlan(source="existing", train_prompts=count),
        )
        for count in (6, 7)
    ]
    first, second = (set(Task.objects.filter(round=r).values_list("prompt", flat=True)) for r in rounds)
    assert (len(first), len(second), len(first & second)) == (6, 7, 3)


def test_a_round_of_existing_completions_opens_at_once(project: Project, comparison: Protocol) -> None:
    make_completions(make_prompts(project, 8), each=3)
    make_completions(make_prompts(project, 2, split="test"), each=3)
    plan = RoundPlan(source="existing", train_prompts=5, test_prompts=9, overlap=2, test_overlap=3)
    round = create_round(project=project, protocol=comparison, plan=plan)
    assert round.state == "open"
    assert purposes(round) == {"train": 5, "test": 2}
    assert round.wanted == 5 * 2 + 2 * 3 == Assignment.objects.count()
    for task in Task.objects.filter(round=round):
        completions = list(task.completions.all())
        assert len({c.text for c in completions}) == 2
        assert {c.prompt_id for c in completions} == {task.prompt_id}


def test_completions_that_read_the_same_are_not_compared(project: Project, comparison: Protocol) -> None:
    same, different = make_prompts(project, 2)
    make_completions([same, different])
    Completion.objects.filter(prompt=same).update(text="The end.")
    plan = RoundPlan(source="existing", train_prompts=2)
    round = create_round(project=project, protocol=comparison, plan=plan)
    assert [task.prompt for task in Task.objects.filter(round=round)] == [different]


def test_existing_completions_of_both_policies_meet_in_the_gate(
    project: Project, comparison: Protocol, starter: Policy
) -> None:
    prompts = make_prompts(project, 4, split="test")
    make_completions(prompts, policy_name="starter")
    make_completions(prompts[:3], policy_name="candidate")
    plan = RoundPlan(source="existing", train_prompts=0, gate_prompts=9)
    candidate = Policy.objects.get(name="candidate")
    round = create_round(project=project, protocol=comparison, plan=plan, new_policy=candidate)
    assert purposes(round) == {"gate": 3}
    for task in Task.objects.all():
        assert {c.policy.name for c in task.completions.all()} == {"starter", "candidate"}


@pytest.mark.parametrize(("kind", "sizes"), [("rating", {1}), ("comparison", {2}), ("ranking", {3, 4})])
def test_a_task_has_as_many_completions_as_its_protocol_shows(
    project: Project, kind: str, sizes: set[int]
) -> None:
    prompts = make_prompts(project, 4)
    make_completions(prompts[:2], each=3)
    make_completions(prompts[2:], each=6)
    plan = RoundPlan(source="existing", train_prompts=4, completions_per_task=4)
    create_round(project=project, protocol=factories.make_protocol(project, kind), plan=plan)
    assert {task.items.count() for task in Task.objects.all()} == sizes


def test_tasks_are_given_out_task_by_task_with_all_purposes_mixed(project: Project) -> None:
    round = make_waiting_round(project, tasks=1, overlap=2)
    Task.objects.all().delete()
    by_purpose = {"train": make_prompts(project, 20), "test": make_prompts(project, 20, split="test")}
    tasks = [
        NewTask(prompt_id=p.pk, purpose=purpose, completion_ids=[c.pk for c in make_completions([p])])
        for purpose, prompts in by_purpose.items()
        for p in prompts
    ]
    assert fill(round=round, tasks=tasks) == 40
    in_order = list(Assignment.objects.order_by("position").values_list("task", "slot", "task__purpose"))
    assert len(in_order) == 20 * 2 + 20 * 1 == round.next_position
    runs = [task for n, (task, *_) in enumerate(in_order) if n == 0 or in_order[n - 1][0] != task]
    assert len(runs) == len(set(runs)) == 40
    first_half = {purpose for *_, purpose in in_order[:20]}
    assert first_half == {"train", "test"}


def test_a_round_is_filled_once(project: Project) -> None:
    round = make_waiting_round(project, tasks=2)
    task = NewTask(
        prompt_id=Task.objects.all()[0].prompt_id,
        purpose="train",
        completion_ids=list(Completion.objects.values_list("pk", flat=True)[:2]),
    )
    with pytest.raises(RoundNotReady):
        fill(round=round, tasks=[task])
    open_round(round)
    with pytest.raises(RoundNotReady):
        fill(round=round, tasks=[task])
    assert Task.objects.count() == 2


def test_a_comparison_of_one_or_of_itself_is_refused(project: Project) -> None:
    round = make_waiting_round(project, tasks=1)
    Task.objects.all().delete()
    pk = Completion.objects.all()[0].pk
    for ids in ([pk], [pk, pk], [pk, pk + 1, pk + 2]):
        with pytest.raises(ValueError):
            fill(
                round=round,
                tasks=[
                    NewTask(prompt_id=make_prompts(project, 1)[0].pk, purpose="train", completion_ids=ids)
                ],
            )
    assert not Task.objects.exists()


def test_a_round_without_tasks_does_not_open(project: Project, comparison: Protocol, starter: Policy) -> None:
    make_prompts(project, 2)
    round = create_round(
        project=project, protocol=comparison, plan=RoundPlan(source="sample", train_prompts=2)
    )
    with pytest.raises(RoundNotReady):
        open_round(round)
    assert Round.objects.get().state == "waiting"


def test_closing_withdraws_what_nobody_answered_and_says_so_once(
    project: Project, ann: User, bo: User, django_capture_on_commit_callbacks: Any
) -> None:
    round = make_open_round(project, tasks=4)
    taken = next_assignment(round=round, rater=ann)
    assert taken is not None
    say_tie(taken, ann)
    next_assignment(round=round, rater=bo)
    heard = Heard(signals.round_closed)
    with django_capture_on_commit_callbacks(execute=True):
        close_round(round)
        close_round(round)
    assert heard.rounds == [round]
    assert (round.state, round.closed_at is None) == ("closed", False)
    states = Counter(Assignment.objects.values_list("state", flat=True))
    assert states == {"done": 1, "withdrawn": 3}
    assert Label.objects.count() == 1
    with pytest.raises(RoundClosed):
        open_round(round)


def test_reopening_lets_raters_finish(project: Project, ann: User, bo: User) -> None:
    round = make_open_round(project, tasks=4)
    next_assignment(round=round, rater=bo)
    taken = next_assignment(round=round, rater=ann)
    assert taken is not None
    say_tie(taken, ann)
    close_round(round)
    reopen_round(round)
    assert (round.state, round.closed_at) == ("open", None)
    while (taken := next_assignment(round=round, rater=ann)) is not None:
        say_tie(taken, ann)
    assert progress(round).done == 4


def test_a_round_that_waits_can_be_given_up(project: Project, comparison: Protocol, starter: Policy) -> None:
    make_prompts(project, 2)
    plan = RoundPlan(source="sample", train_prompts=2)
    round = create_round(project=project, protocol=comparison, plan=plan)
    heard = Heard(signals.round_closed)
    close_round(round)
    assert round.state == "closed"
    assert not heard.rounds
    with pytest.raises(RoundNotReady):
        reopen_round(round)
    assert create_round(project=project, protocol=comparison, plan=plan).number == 2


def test_progress_counts_labels_by_rater(
    project: Project, ann: User, bo: User, django_assert_num_queries: Any
) -> None:
    round = make_open_round(project, tasks=4, overlap=2)
    for rater, labels in ((ann, 1), (bo, 3)):
        for _ in range(labels):
            taken = next_assignment(round=round, rater=rater)
            assert taken is not None
            say_tie(taken, rater)
    next_assignment(round=round, rater=bo)
    so_far = progress(round)
    assert (so_far.done, so_far.wanted, so_far.leased, so_far.by_rater) == (4, 8, 1, {"bo": 3, "ann": 1})
    with django_assert_num_queries(1):
        share = rater_progress(round, ann)
    assert (share.mine, share.done, share.wanted) == (1, 4, 8)
