"""The story of a project on one page: its turns, its figures, and the next sensible step."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import datasets
from labeling.models import Assignment, Collection, Policy, PreferenceDataset, Project, Round
from tests import factories
from tests.labeling.judged import compared_round, make_prompt, make_round, make_task, vote
from tests.training.stage import make_starter
from training.models import Artifact, GateDecision, Run
from training.views.story import Action, next_action, story_of

State = Run.State


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def judged(project: Project, ann: User) -> Round:
    """Round 1, judged by ann and closed; its completions are the starter's."""
    make_starter(project)
    return compared_round(project, [ann], [[2], [-1], [3], [1]])


@pytest.fixture
def frozen(project: Project, judged: Round) -> PreferenceDataset:
    return datasets.freeze(project=project, rounds=[judged], rule="each_label", name="first")


def add_run(dataset: PreferenceDataset, method: str, state: str = State.COMPLETE, **how: Any) -> Run:
    return Run.objects.create(
        project=dataset.project,
        method=method,
        state=state,
        dataset=dataset,
        policy=dataset.project.current_policy,
        **how,
    )


def add_policy(run: Run, name: str, **evaluation: float) -> Policy:
    policy = factories.make_policy(run.project, name, Policy.State.CANDIDATE)
    policy.parent = run.policy
    policy.save()
    Run.objects.filter(pk=run.pk).update(evaluation=evaluation)
    Artifact.objects.create(run=run, kind="policy", folder="/x", policy=policy)
    return policy


def next_of(project: Project) -> Action:
    action = next_action(story_of(project))
    assert action is not None
    return action


def page_of(manager: Client, project: Project) -> str:
    answer = manager.get(project.get_absolute_url())
    assert answer.status_code == 200
    return answer.content.decode()


# ---- the next step, all the way round


def test_a_project_without_prompts_asks_for_some(project: Project) -> None:
    assert next_of(project).url == reverse("import", args=[project.slug])


def test_a_project_without_a_protocol_asks_for_one(project: Project) -> None:
    make_prompt(project, "Tell me a story.")
    assert next_of(project).url == reverse("project_settings", args=[project.slug])


def test_a_project_that_is_set_up_opens_its_first_round(project: Project) -> None:
    make_prompt(project, "Tell me a story.")
    factories.make_protocol(project)
    assert next_of(project).url == reverse("round_new", args=[project.slug])


def test_what_a_file_brought_in_is_frozen_next(project: Project) -> None:
    make_prompt(project, "Tell me a story.")
    factories.make_protocol(project)
    Collection.objects.create(project=project, kind="demonstrations", name="shown.jsonl")
    assert next_of(project).url == reverse("dataset_new", args=[project.slug])


def test_an_open_round_is_judged(project: Project, judged: Round) -> None:
    judged.assignments.update(state="open", rater=None, label=None)
    Round.objects.filter(pk=judged.pk).update(state=Round.State.OPEN)
    action = next_of(project)
    assert (action.label, action.url) == ("Judge round 1", reverse("judge", args=[judged.pk]))
    assert action.why == "0 of 4 labels are in."


def test_a_round_with_all_its_labels_is_closed_by_a_button(
    project: Project, judged: Round, manager: Client
) -> None:
    Round.objects.filter(pk=judged.pk).update(state=Round.State.OPEN)
    action = next_of(project)
    assert (action.label, action.post) == ("Close round 1", True)
    page = page_of(manager, project)
    assert f'<form method="post" action="{reverse("round_close", args=[judged.pk])}">' in page
    manager.post(action.url)
    judged.refresh_from_db()
    assert judged.state == Round.State.CLOSED


def test_a_closed_round_is_frozen(project: Project, judged: Round) -> None:
    assert next_of(project).url == reverse("dataset_new", args=[project.slug])


def test_a_dataset_trains_a_reward_model_and_then_a_policy(
    project: Project, frozen: PreferenceDataset
) -> None:
    assert next_of(project).label == "Train a reward model"
    assert next_of(project).url.endswith(f"?method=reward_model&dataset={frozen.pk}")
    add_run(frozen, Run.Method.REWARD_MODEL)
    assert next_of(project).label == "Train a policy"
    add_run(frozen, Run.Method.DPO)
    assert next_of(project).label == "Open the next round"


def test_ratings_alone_train_a_reward_model_and_then_a_policy_by_kto(
    project: Project, frozen: PreferenceDataset
) -> None:
    frozen.manifest = {"tables": {"ratings": {"train": 9, "test": 1}, "prompts": {"train": 9, "test": 1}}}
    frozen.save()
    assert next_of(project).url.endswith(f"?method=reward_model&dataset={frozen.pk}")
    add_run(frozen, Run.Method.REWARD_MODEL)
    assert next_of(project).url.endswith(f"?method=kto&dataset={frozen.pk}")


def test_demonstrations_need_no_reward_model(project: Project, frozen: PreferenceDataset) -> None:
    frozen.manifest = {"tables": {"demonstrations": {"train": 9, "test": 1}}}
    frozen.save()
    assert next_of(project).url.endswith(f"?method=sft&dataset={frozen.pk}")


@pytest.mark.parametrize("method", [Run.Method.PPO, Run.Method.GRPO, Run.Method.KTO, Run.Method.SFT])
def test_a_policy_of_any_method_leads_to_the_next_round(
    method: str, project: Project, frozen: PreferenceDataset
) -> None:
    add_run(frozen, Run.Method.REWARD_MODEL)
    add_run(frozen, method)
    assert next_of(project).label == "Open the next round"


def test_a_dataset_of_ratings_does_not_hide_one_that_can_be_learnt_from(
    project: Project, frozen: PreferenceDataset
) -> None:
    rated = PreferenceDataset.objects.create(
        project=project, name="rated", rule="each_label", folder="r", digest="r"
    )
    rated.rounds.set(frozen.rounds.all())
    assert next_of(project).url.endswith(f"?method=reward_model&dataset={frozen.pk}")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State.CHECKING, "Watch run"),
        (State.READY, "start it"),
        (State.QUEUED, "Watch run"),
        (State.FAILED, "what stopped run"),
        (State.REFUSED, "what stopped run"),
    ],
)
def test_a_run_that_needs_somebody_comes_first(
    state: str, said: str, project: Project, frozen: PreferenceDataset
) -> None:
    run = add_run(frozen, Run.Method.DPO, state)
    assert said in next_of(project).label
    assert next_of(project).url == run.get_absolute_url()


@pytest.mark.parametrize(
    ("state", "said"),
    [(State.CHECKING, "is being checked."), (State.QUEUED, "waits for the device.")],
)
def test_a_run_that_has_not_begun_is_not_called_under_way(
    state: str, said: str, project: Project, frozen: PreferenceDataset
) -> None:
    run = add_run(frozen, Run.Method.DPO, state)
    assert next_of(project).why == f"Run {run.pk} (DPO) {said}"


def test_a_cancelled_run_is_not_pressed_upon_anybody(project: Project, frozen: PreferenceDataset) -> None:
    add_run(frozen, Run.Method.REWARD_MODEL, State.CANCELLED)
    assert next_of(project).label == "Train a reward model"


def test_a_run_that_failed_before_the_newest_round_is_history(
    project: Project, frozen: PreferenceDataset
) -> None:
    add_run(frozen, Run.Method.DPO, State.FAILED)
    make_round(project)
    assert next_of(project).label == "Freeze a dataset"


def test_a_run_under_way_is_watched_though_a_later_one_is_over(
    project: Project, frozen: PreferenceDataset
) -> None:
    under_way = add_run(frozen, Run.Method.DPO, State.QUEUED)
    add_run(frozen, Run.Method.REWARD_MODEL)
    assert next_of(project).url == under_way.get_absolute_url()


def test_a_failed_run_that_was_done_again_is_history(project: Project, frozen: PreferenceDataset) -> None:
    add_run(frozen, Run.Method.REWARD_MODEL, State.FAILED)
    add_run(frozen, Run.Method.REWARD_MODEL)
    assert next_of(project).label == "Train a policy"


# ---- the turns


def test_each_thing_stands_in_the_turn_that_it_came_of(project: Project, frozen: PreferenceDataset) -> None:
    run = add_run(frozen, Run.Method.DPO)
    policy = add_policy(run, "dpo-1")
    second = make_round(project, new_policy=policy, old_policy=project.current_policy)
    both = PreferenceDataset.objects.create(
        project=project, name="both", rule="each_label", folder="b", digest="b"
    )
    both.rounds.set([frozen.rounds.get(), second])
    before, first, last = story_of(project).turns
    assert before.round is None and "starter" in [p.name for p in before.policies]
    assert [step.dataset for step in first.datasets] == [frozen]
    assert first.datasets[0].runs == [run]
    assert first.policies == [policy]
    assert last.round == second
    assert [step.dataset for step in last.datasets] == [both]


def test_an_imported_dataset_stands_before_the_first_round(project: Project) -> None:
    imported = PreferenceDataset.objects.create(
        project=project, name="imported", rule="each_label", folder="i", digest="i"
    )
    (before,) = story_of(project).turns
    assert [step.dataset for step in before.datasets] == [imported]


def test_the_page_tells_the_whole_turn(manager: Client, project: Project, frozen: PreferenceDataset) -> None:
    policy = add_policy(add_run(frozen, Run.Method.DPO), "dpo-1")
    page = page_of(manager, project)
    for said in ("Round 1", "4 of 4 labels", "first", "dpo-1", "Candidate", "starter", "Current"):
        assert said in page, said
    round, run = frozen.rounds.get(), Run.objects.get()
    for address in (x.get_absolute_url() for x in (frozen, policy, round, run)):
        assert f'href="{address}"' in page


def test_one_policy_is_the_current_one_and_those_before_it_are_former_ones(
    manager: Client, project: Project, frozen: PreferenceDataset
) -> None:
    policy = add_policy(add_run(frozen, Run.Method.DPO), "dpo-1")
    policy.state = Policy.State.PROMOTED
    policy.save()
    former = project.current_policy
    assert former is not None
    project.current_policy = policy
    project.save()
    assert badges_of(page_of(manager, project)).count("Current") == 1
    for one, word in ((policy, "Current"), (former, "Former")):
        page = manager.get(one.get_absolute_url()).content.decode()
        assert badges_of(page) == [word]


def badges_of(page: str) -> list[str]:
    return re.findall(r'<span class="badge[^>]*>([^<]+)</span>', page)


def test_the_gate_says_why_the_candidate_is_not_promoted(
    manager: Client, project: Project, frozen: PreferenceDataset
) -> None:
    policy = add_policy(add_run(frozen, Run.Method.DPO), "dpo-1", kl=7.5, reward_new=2.0, reward_old=0.5)
    assert "No round compares it with starter yet." in page_of(manager, project)
    second = make_round(project, new_policy=policy, old_policy=project.current_policy)
    GateDecision.objects.create(
        policy=policy,
        against=project.current_policy,
        round=second,
        promoted=False,
        win_rate=0.56,
        low=0.44,
        high=0.68,
        labels=48,
        reason="The interval does not lie above one half.",
    )
    page = page_of(manager, project)
    assert "56 %" in page and "does not lie above one half" in page


def test_the_round_that_compares_a_candidate_says_how_far_people_have_come(
    manager: Client, project: Project, frozen: PreferenceDataset, ann: User
) -> None:
    policy = add_policy(add_run(frozen, Run.Method.DPO), "dpo-1")
    old = project.current_policy
    assert old is not None
    second = make_round(
        project, state=Round.State.OPEN, overlap=2, new_policy=policy, old_policy=project.current_policy
    )
    for purpose in ("gate", "train"):
        task = make_task(second, make_prompt(project, f"For {purpose}"), ["a", "b"], [policy, old], purpose)
        vote(task, ann, 2)
        Assignment.objects.create(round=second, task=task, slot=1, position=1)
    for address in (project, policy):
        page = manager.get(address.get_absolute_url()).content.decode()
        assert f'<a href="{second.get_absolute_url()}">Round 2</a> compares it with starter' in page
        assert "1 of 2 gate judgements are in; decided when it closes." in page
        assert "No round compares" not in page


def test_a_round_that_waits_for_completions_is_named_as_the_one_that_will_compare(
    manager: Client, project: Project, frozen: PreferenceDataset
) -> None:
    policy = add_policy(add_run(frozen, Run.Method.DPO), "dpo-1")
    make_round(project, state=Round.State.WAITING, new_policy=policy, old_policy=project.current_policy)
    assert "it waits for completions" in page_of(manager, project)


def test_the_charts_appear_with_their_figures(
    manager: Client, project: Project, frozen: PreferenceDataset
) -> None:
    assert "<svg" not in page_of(manager, project)
    policy = add_policy(add_run(frozen, Run.Method.DPO), "dpo-1", kl=7.5, reward_new=2.0, reward_old=0.5)
    assert manager.get(project.get_absolute_url()).context["reward_chart"] is None  # one dot says little
    add_policy(add_run(frozen, Run.Method.DPO), "dpo-2", kl=9.0, reward_new=1.0, reward_old=0.5)
    second = make_round(project, new_policy=policy)
    GateDecision.objects.create(
        policy=policy, round=second, promoted=True, win_rate=0.83, low=0.71, high=0.92, labels=60
    )
    answer = manager.get(project.get_absolute_url())
    assert answer.context["win_rate_chart"].rows == [["dpo-1", "83 %", "71 %", "92 %", "60"]]
    assert answer.context["reward_chart"].rows == [["dpo-1", "7.5", "1.5"], ["dpo-2", "9", "0.5"]]
    assert answer.content.decode().count("<svg") == 2


def test_a_policy_without_a_reward_model_is_left_out_of_the_chart(
    project: Project, frozen: PreferenceDataset, manager: Client
) -> None:
    add_policy(add_run(frozen, Run.Method.DPO), "dpo-1", kl=7.5)
    assert manager.get(project.get_absolute_url()).context["reward_chart"] is None


def test_the_page_asks_no_more_questions_as_the_story_grows(
    manager: Client, project: Project, frozen: PreferenceDataset, django_assert_max_num_queries: Any
) -> None:
    for number in range(6):
        policy = add_policy(add_run(frozen, Run.Method.DPO), f"dpo-{number}", kl=1.0)
        round = make_round(project, new_policy=policy, old_policy=project.current_policy)
        GateDecision.objects.create(policy=policy, round=round, promoted=False, win_rate=0.5, low=0, high=1)
        add_run(frozen, Run.Method.SAMPLE, round=round)
    with django_assert_max_num_queries(18):
        page_of(manager, project)


# ---- who, which, how


@pytest.mark.parametrize("name", ["ann", "zed"])
def test_nobody_but_a_manager_reads_the_story(
    name: str, client: Client, project: Project, request: pytest.FixtureRequest
) -> None:
    client.force_login(request.getfixturevalue(name))
    assert client.get(project.get_absolute_url()).status_code == 404


def test_a_visitor_is_asked_to_sign_in(client: Client, project: Project) -> None:
    assert client.get(project.get_absolute_url()).headers["Location"].startswith(reverse("login"))


def test_a_story_never_tells_of_another_project(
    manager: Client, project: Project, frozen: PreferenceDataset
) -> None:
    other = factories.make_project("Others")
    make_round(other)
    add_run(
        PreferenceDataset.objects.create(project=other, name="o", rule="each_label", folder="o", digest="o"),
        Run.Method.DPO,
    )
    story = story_of(project)
    assert len(story.turns) == 2 and not story.runs


def test_a_project_that_is_not_there_is_not_found(manager: Client) -> None:
    assert manager.get(reverse("project", args=["nowhere"])).status_code == 404


def test_a_story_takes_no_post(manager: Client, project: Project) -> None:
    assert manager.post(project.get_absolute_url()).status_code == 405


def test_a_run_that_writes_data_is_shown_whether_or_not_a_dataset_came_of_it(
    manager: Client, project: Project, judged: Round
) -> None:
    run = Run.objects.create(
        project=project, method="ai_preferences", state=State.COMPLETE, policy=project.current_policy
    )
    before, turn = story_of(project).turns
    assert turn.making == [run] and not before.making
    page = manager.get(project.get_absolute_url()).content.decode()
    assert f'<a href="{run.get_absolute_url()}">Run {run.pk}</a>' in page
    assert "no dataset was made" in page
