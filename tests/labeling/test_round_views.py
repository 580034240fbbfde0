"""The manager's pages of a round, over HTTP."""

import doctest
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from labeling.models import Assignment, Policy, Project, Protocol, Round, Skip, Task
from labeling.templatetags import judging_figures
from labeling.views import bars, intervals
from tests import factories
from tests.labeling import judged

HTMX = {"HX-Request": "true"}


@pytest.fixture(autouse=True)
def _fresh_cache() -> None:
    cache.clear()


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def round(project: Project, ann: User, bo: User) -> Round:
    votes: list[list[int | None]] = [[4, 2], [-1, -3], [0, 0], [None, 1], [3, -3], [2, 1]]
    return judged.compared_round(project, [ann, bo], votes, state=Round.State.OPEN, wanted=14)


def test_the_examples_of_the_bars_and_figures_hold() -> None:
    assert doctest.testmod(bars).failed == 0
    assert doctest.testmod(intervals).failed == 0
    assert doctest.testmod(judging_figures).failed == 0


def address(name: str, round: Round) -> str:
    return reverse(name, args=[round.pk])


ROUND_PAGES = [("round", "get"), ("round_close", "post"), ("round_reopen", "post")]


@pytest.mark.parametrize(("name", "method"), ROUND_PAGES)
@pytest.mark.parametrize("person", ["zed", "ann"])
def test_strangers_and_raters_find_no_such_round(
    client: Client, round: Round, zed: User, ann: User, person: str, name: str, method: str
) -> None:
    client.force_login({"zed": zed, "ann": ann}[person])
    assert getattr(client, method)(address(name, round)).status_code == 404
    assert Round.objects.get(pk=round.pk).state == Round.State.OPEN


@pytest.mark.parametrize(("name", "method"), ROUND_PAGES)
def test_a_round_asks_those_who_are_not_signed_in_to_do_so(
    client: Client, round: Round, name: str, method: str
) -> None:
    response = getattr(client, method)(address(name, round))
    assert (response.status_code, response.url.split("?")[0]) == (302, reverse("login"))


@pytest.mark.parametrize(("name", "method"), ROUND_PAGES)
def test_a_round_that_is_not_there_is_not_found(manager: Client, name: str, method: str) -> None:
    assert getattr(manager, method)(reverse(name, args=[999_999])).status_code == 404


@pytest.mark.parametrize(
    ("name", "method"), [("round", "post"), ("round_close", "get"), ("round_reopen", "get")]
)
def test_the_wrong_method_is_refused_and_changes_nothing(
    manager: Client, round: Round, name: str, method: str
) -> None:
    assert getattr(manager, method)(address(name, round)).status_code == 405
    assert Round.objects.get(pk=round.pk).state == Round.State.OPEN


def test_the_page_shows_how_far_the_round_is(manager: Client, round: Round, ann: User) -> None:
    Skip.objects.create(task=round.tasks.all()[0], rater=ann, reason="The text is broken")
    page = manager.get(address("round", round)).content.decode()
    assert "12 of 14 labels" in page
    assert "1 × “The text is broken”" in page
    # Pairs of labels: agree, agree, agree (ties), both bad is left out, disagree, agree.
    assert "<b>80 %</b><span>agreement, 5 pairs of labels</span>" in page
    assert "<b>8 %</b><span>both bad</span>" in page
    assert "far better" in page
    assert 'hx-trigger="every 5s"' in page


def test_htmx_gets_the_moving_part_alone(manager: Client, round: Round) -> None:
    response = manager.get(address("round", round) + "?state=open", headers=HTMX)
    page = response.content.decode()
    assert page.strip().startswith('<div id="round-live"')
    assert "<html" not in page
    assert "HX-Refresh" not in response


def test_htmx_loads_the_page_again_when_the_state_has_changed(manager: Client, round: Round) -> None:
    assert manager.get(address("round", round) + "?state=waiting", headers=HTMX)["HX-Refresh"] == "true"


def test_a_closed_round_no_longer_asks_for_itself(manager: Client, round: Round) -> None:
    manager.post(address("round_close", round))
    page = manager.get(address("round", round)).content.decode()
    assert "every 5s" not in page
    assert f"{reverse('dataset_new', args=[round.project.slug])}?round={round.pk}" in page


def test_the_cost_of_the_moving_part_does_not_grow_with_the_labels(
    manager: Client, project: Project, ann: User, django_assert_max_num_queries: Any
) -> None:
    large = judged.compared_round(project, [ann], [[1]] * 60, state=Round.State.OPEN, wanted=60)
    with django_assert_max_num_queries(12):
        manager.get(address("round", large), headers=HTMX)


def test_raters_who_always_choose_the_left_are_seen(manager: Client, project: Project, ann: User) -> None:
    biased = judged.make_round(project, state=Round.State.OPEN, wanted=40)
    policy = factories.make_policy(project)
    for number in range(40):
        task = judged.make_task(
            biased, judged.make_prompt(project, f"{number}"), ["x", "y"], [policy, policy]
        )
        first, second = (item.completion_id for item in task.items.order_by("completion_id"))
        preferred_second = number % 2
        shown = [second, first] if preferred_second else [first, second]
        judged.vote(task, ann, -1 if preferred_second else 1, shown=shown)
    page = manager.get(address("round", biased)).content.decode()
    assert "<b>100 %</b><span>chose the left one, of 40</span>" in page
    assert "more than chance explains" in page


def test_completions_that_name_their_writer_are_flagged_and_escaped(
    manager: Client, project: Project, ann: User
) -> None:
    round = judged.make_round(project, state=Round.State.OPEN, wanted=1)
    policy = factories.make_policy(project, "Fox-7B")
    texts = ["<script>x</script> As an AI language model I", "I was written by fox-7b, yes"]
    judged.make_task(round, judged.make_prompt(project, "Hi."), texts, [policy, policy])
    page = manager.get(address("round", round)).content.decode()
    assert "<mark>As an AI</mark>" in page
    assert "<mark>fox-7b</mark>" in page
    assert "<script>x" not in page


def test_imported_labels_were_on_no_screen_and_take_no_side(
    manager: Client, project: Project, ann: User, bo: User
) -> None:
    imported = judged.make_round(project, wanted=2)
    policy = factories.make_policy(project)
    task = judged.make_task(imported, judged.make_prompt(project, "Hi."), ["x", "y"], [policy, policy])
    judged.vote(task, ann, 2, shown=[])
    judged.vote(task, bo, 3, shown=[])
    page = manager.get(address("round", imported)).content.decode()
    assert "<b>100 %</b><span>agreement, 1 pair of labels</span>" in page
    assert "chose the left one" not in page
    assert "<svg" not in page


def test_ordinary_stories_are_not_flagged(manager: Client, round: Round) -> None:
    assert "name their writer" not in manager.get(address("round", round)).content.decode()


@pytest.mark.parametrize("kind", ["ranking", "rating"])
def test_the_page_shows_rounds_of_every_kind(
    manager: Client, project: Project, ann: User, bo: User, kind: str
) -> None:
    round = judged.make_round(project, kind, state=Round.State.OPEN, wanted=8, overlap=2)
    policy = factories.make_policy(project)
    for number in range(4):
        texts = ["x", "y", "z"] if kind == "ranking" else ["x"]
        task = judged.make_task(round, judged.make_prompt(project, f"{number}"), texts, [policy] * len(texts))
        ids = [str(item.completion_id) for item in task.items.all()]
        for rater in (ann, bo):
            ranks = {pk: rank for rank, pk in enumerate(ids, start=1)}
            judged.say(
                task, rater, {"ranks": ranks} if kind == "ranking" else {"scores": {"overall": 1 + number}}
            )
    page = manager.get(address("round", round)).content.decode()
    expected = {
        "ranking": "<b>100 %</b><span>agreement, 12 pairs of labels</span>",
        "rating": "<b>1.00</b><span>Krippendorff’s α, Overall</span>",
    }
    assert expected[kind] in page
    assert "<svg" in page


def test_each_bar_carries_its_word(manager: Client, round: Round) -> None:
    page = manager.get(address("round", round)).content.decode()
    words = re.findall(r'<text class="word" y="16">([^<]+)</text>', page)
    assert words == [
        *("far", "clearly", "somewhat", "slightly", "tie"),
        *("slightly", "somewhat", "clearly", "far", "both bad"),
    ]
    assert 'role="group"' not in page


def test_each_score_stands_under_its_bar(manager: Client, project: Project, ann: User) -> None:
    rated = judged.make_round(project, "rating", state=Round.State.OPEN, wanted=2)
    policy = factories.make_policy(project)
    judged.say(
        judged.make_task(rated, judged.make_prompt(project, "Hi."), ["x"], [policy]),
        ann,
        {"scores": {"overall": 4}},
    )
    page = manager.get(address("round", rated)).content.decode()
    assert re.findall(r'<text class="word" y="16">([^<]+)</text>', page) == ["1", "2", "3", "4", "5"]


# What is left of it


def take(round: Round, rater: User, *, minutes: int) -> None:
    """Put a new task of the round on the rater's screen, for so long."""
    policy = Policy.objects.filter(project=round.project).first() or factories.make_policy(round.project)
    task = judged.make_task(round, judged.make_prompt(round.project, "One more."), ["x", "y"], [policy] * 2)
    Assignment.objects.create(
        round=round,
        task=task,
        slot=0,
        position=99,
        state=Assignment.State.LEASED,
        rater=rater,
        leased_until=timezone.now() + timedelta(minutes=minutes),
    )


CLOSE = '<button type="submit">Close the round</button>'


def test_the_last_task_on_a_screen_is_named_and_the_round_can_be_closed(
    manager: Client, round: Round, ann: User
) -> None:
    Round.objects.filter(pk=round.pk).update(wanted=13)
    assert CLOSE not in manager.get(address("round", round), headers=HTMX).content.decode()
    take(round, ann, minutes=20)
    page = manager.get(address("round", round), headers=HTMX).content.decode()
    assert "12 of 13 labels are in" in page
    assert re.search(r"1 is on somebody’s screen \(ann, until \d\d:\d\d\)", page)
    assert CLOSE in page


def test_a_task_whose_time_ran_out_is_said_to_be_free(manager: Client, round: Round, ann: User) -> None:
    take(round, ann, minutes=-5)
    page = manager.get(address("round", round), headers=HTMX).content.decode()
    assert "whoever asks next gets it" in page


def test_a_round_with_open_tasks_keeps_the_button_folded_away(manager: Client, round: Round) -> None:
    assert CLOSE not in manager.get(address("round", round), headers=HTMX).content.decode()


def test_too_few_raters_for_the_overlap_are_said(manager: Client, project: Project, ann: User) -> None:
    short = judged.compared_round(project, [ann], [[1], [2], [1]], state=Round.State.OPEN, wanted=6)
    Round.objects.filter(pk=short.pk).update(plan={"overlap": 2, "test_overlap": 2})
    page = manager.get(address("round", short), headers=HTMX).content.decode()
    assert "A second rater is needed: 3 tasks want 2 different raters, the project has 1." in page
    assert "nobody can add another" in page
    assert CLOSE in page
    factories.make_user("cy", project)
    assert "is needed" not in manager.get(address("round", short), headers=HTMX).content.decode()


def test_a_short_round_that_goes_on_is_not_offered_to_close(
    manager: Client, project: Project, ann: User
) -> None:
    short = judged.compared_round(project, [ann], [[1], [2], []], state=Round.State.OPEN, wanted=7)
    Round.objects.filter(pk=short.pk).update(plan={"overlap": 2, "test_overlap": 3})
    page = manager.get(address("round", short), headers=HTMX).content.decode()
    assert "3 tasks want up to 3 different raters" in page
    assert CLOSE not in page


# The gate


@pytest.fixture
def gate(project: Project, ann: User) -> Round:
    """An open round with ten gate tasks; ann preferred the new policy in all but the last two."""
    old = factories.make_policy(project, "old one")
    new = factories.make_policy(project, "new one", Policy.State.CANDIDATE)
    project.current_policy = old
    project.save(update_fields=["current_policy"])
    round = judged.make_round(project, state=Round.State.OPEN, wanted=10, old_policy=old, new_policy=new)
    for number in range(10):
        prompt = judged.make_prompt(project, f"{number}", "test")
        task = judged.make_task(round, prompt, [f"a {number}", f"b {number}"], [new, old], Task.Purpose.GATE)
        if number < 8:
            judged.vote(task, ann, 2)
    return round


def test_an_open_gate_tells_how_many_judgements_are_in_and_not_what_they_say(
    manager: Client, gate: Round, ann: User
) -> None:
    take(gate, ann, minutes=10)  # of a task to train on: no part of the gate
    page = manager.get(address("round", gate), headers=HTMX).content.decode()
    assert "New against old policy" in page
    assert "8 of 8 gate judgements are in" in page
    assert "stays hidden until then" in page
    assert "win rate" not in page


def test_a_closed_gate_shows_win_rate_interval_and_what_became_of_the_policy(
    manager: Client, gate: Round, project: Project
) -> None:
    message = manager.post(address("round_close", gate), follow=True).content.decode()
    assert "<b>100 %</b><span>win rate of the new policy</span>" in message
    assert "<b>8</b><span>judgements, a tie counts half</span>" in message
    assert re.search(r"95 % interval: \d\d % to 100 %", message)
    assert gate.new_policy is not None
    assert f'href="{gate.new_policy.get_absolute_url()}"' in message


@pytest.mark.django_db(transaction=True)  # what decides about a policy listens for the commit
def test_closing_a_round_with_a_gate_says_who_won(manager: Client, gate: Round, project: Project) -> None:
    response = manager.post(address("round_close", gate), follow=True)
    said = [str(message) for message in response.context["messages"]]
    assert said == [
        "Round 1 is closed. Its labels can be frozen into a dataset now. "
        "new one is promoted: it is the current policy now."
    ]


def test_a_gate_that_nobody_won_says_that_the_policy_waits(manager: Client, gate: Round, bo: User) -> None:
    for task in gate.tasks.all():
        judged.vote(task, bo, -2)
    page = manager.post(address("round_close", gate), follow=True).content.decode()
    assert "new one is not promoted: the interval of its win rate does not lie wholly above 50 %" in page


def test_a_promoted_policy_is_named_as_the_current_one(
    manager: Client, gate: Round, project: Project
) -> None:
    manager.post(address("round_close", gate))
    project.current_policy = gate.new_policy
    project.save(update_fields=["current_policy"])
    page = manager.get(address("round", gate)).content.decode()
    assert "new one is promoted: it is the current policy now." in page


def test_a_gate_without_a_judgement_says_so(manager: Client, project: Project, ann: User) -> None:
    policies = [factories.make_policy(project, name) for name in ("old one", "new one")]
    Policy.objects.filter(name="new one").update(state=Policy.State.CANDIDATE)
    round = judged.make_round(
        project, state=Round.State.OPEN, wanted=1, old_policy=policies[0], new_policy=policies[1]
    )
    take(round, ann, minutes=5)
    round.tasks.update(purpose=Task.Purpose.GATE)
    page = manager.post(address("round_close", round), follow=True).content.decode()
    assert "Nobody compared it with old one, so new one is not promoted." in page


def test_a_round_without_a_new_policy_shows_no_gate(manager: Client, round: Round) -> None:
    assert "New against old policy" not in manager.get(address("round", round)).content.decode()


def test_closing_ends_judging_and_says_so(manager: Client, round: Round) -> None:
    response = manager.post(address("round_close", round), follow=True)
    assert Round.objects.get(pk=round.pk).state == Round.State.CLOSED
    assert "Round 1 is closed" in response.content.decode()


def test_a_round_that_is_all_judged_offers_to_close(manager: Client, round: Round) -> None:
    assert "Everything is judged" not in manager.get(address("round", round), headers=HTMX).content.decode()
    Round.objects.filter(pk=round.pk).update(wanted=12)
    assert "Everything is judged" in manager.get(address("round", round), headers=HTMX).content.decode()
    manager.post(address("round_close", round))
    assert "Everything is judged" not in manager.get(address("round", round), headers=HTMX).content.decode()


def test_closing_twice_is_harmless(manager: Client, round: Round) -> None:
    manager.post(address("round_close", round))
    assert manager.post(address("round_close", round)).status_code == 302


def test_a_closed_round_can_be_opened_again(manager: Client, round: Round) -> None:
    manager.post(address("round_close", round))
    assert "is open again" in manager.post(address("round_reopen", round), follow=True).content.decode()
    assert Round.objects.get(pk=round.pk).state == Round.State.OPEN


def test_a_round_without_tasks_says_why_it_cannot_be_opened_again(manager: Client, project: Project) -> None:
    round = judged.make_round(project)
    page = manager.post(address("round_reopen", round), follow=True).content.decode()
    assert "Make a new round" in page
    assert Round.objects.get(pk=round.pk).state == Round.State.CLOSED


# New round


def new_round(project: Project, kind: str = "") -> str:
    return reverse("round_new", args=[project.slug]) + (f"?kind={kind}" if kind else "")


def filled(**changes: Any) -> dict[str, Any]:
    return {
        "question": "Which is better?", "strengths": 4, "tie": "on", "both_bad": "on", "source": "existing",
        "train_prompts": 3, "test_prompts": 1, "gate_prompts": 0, "overlap": 2, "test_overlap": 1,
        "temperature": 1, "max_new_tokens": 64, "seed": 5, **changes,
    }  # fmt: skip


@pytest.fixture
def written(project: Project) -> Policy:
    """Four prompts, each with two completions that are there already."""
    policy = factories.make_policy(project)
    round = judged.make_round(project)
    for number in range(4):
        prompt = judged.make_prompt(project, f"{number}", "test" if number == 3 else "train")
        judged.make_task(round, prompt, [f"a {number}", f"b {number}"], [policy, policy])
    return policy


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("person", ["zed", "ann"])
def test_strangers_and_raters_cannot_make_a_round(
    client: Client, project: Project, zed: User, ann: User, person: str, method: str
) -> None:
    client.force_login({"zed": zed, "ann": ann}[person])
    assert getattr(client, method)(new_round(project)).status_code == 404


def test_making_a_round_asks_for_a_sign_in(client: Client, project: Project) -> None:
    assert client.get(new_round(project)).status_code == 302


def test_a_round_of_no_project_is_not_found(manager: Client) -> None:
    assert manager.get(reverse("round_new", args=["none"])).status_code == 404


def test_a_round_is_not_made_by_another_method(manager: Client, project: Project) -> None:
    assert manager.delete(new_round(project)).status_code == 405


@pytest.mark.parametrize("kind", ["comparison", "ranking", "rating"])
def test_the_form_has_defaults_that_work(
    manager: Client, project: Project, written: Policy, kind: str
) -> None:
    response = manager.get(new_round(project, kind))
    form = response.context["form"]
    data = {
        name: value
        for name in form.fields
        if (value := form.get_initial_for_field(form.fields[name], name)) is not None and value is not False
    }
    response = manager.post(new_round(project, kind), data)
    assert response.status_code == 302, response.context["form"].errors
    made = Round.objects.latest("pk")
    assert (made.protocol.kind, made.state) == (kind, Round.State.OPEN)


def test_a_round_of_existing_completions_opens_at_once(
    manager: Client, project: Project, written: Policy
) -> None:
    response = manager.post(new_round(project, "comparison"), filled())
    made = Round.objects.latest("pk")
    assert response["Location"] == address("round", made)
    assert (made.state, made.overlap, made.plan["seed"]) == (Round.State.OPEN, 2, 5)
    assert Assignment.objects.filter(round=made).count() == 3 * 2 + 1


def test_a_round_of_new_completions_waits_for_them(
    manager: Client, project: Project, written: Policy
) -> None:
    written.location = "some/model"
    written.save(update_fields=["location"])
    project.current_policy = written
    project.save(update_fields=["current_policy"])
    manager.post(new_round(project, "comparison"), filled(source="sample"))
    made = Round.objects.latest("pk")
    assert (made.state, made.plan["source"]) == (Round.State.WAITING, "sample")
    page = manager.get(address("round", made)).content.decode()
    assert "waits for completions" in page
    assert f'<a href="{project.get_absolute_url()}">the project’s page</a>' in page
    assert '3 to train on, 1 held out <span class="muted">(planned)</span>' in page


def test_nobody_to_write_new_completions_is_said(manager: Client, project: Project, written: Policy) -> None:
    response = manager.post(new_round(project, "comparison"), filled(source="sample"))
    assert response.status_code == 422
    assert "no policy with a model that could write" in response.content.decode()


def test_the_same_question_keeps_its_version_and_another_one_makes_a_new_one(
    manager: Client, project: Project, written: Policy
) -> None:
    before = Protocol.objects.filter(project=project).count()
    manager.post(new_round(project, "comparison"), filled())
    assert Protocol.objects.filter(project=project).count() == before
    manager.post(new_round(project, "comparison"), filled(question="Which is kinder?"))
    assert Protocol.objects.filter(project=project).count() == before + 1
    changed = filled()
    del changed["tie"]
    manager.post(new_round(project, "comparison"), changed)
    latest = Protocol.objects.filter(project=project).order_by("-version")[0]
    assert latest.options == {"strengths": 4, "tie": False, "both_bad": True}


def test_criteria_are_read_from_lines(manager: Client, project: Project, written: Policy) -> None:
    data = filled(criteria="Kind: no harm done\n\nOn topic\n", low=1, high=7)
    manager.post(new_round(project, "rating"), data)
    made = Round.objects.latest("pk")
    assert made.protocol.options == {
        "criteria": [
            {"key": "kind", "name": "Kind", "help": "no harm done"},
            {"key": "on-topic", "name": "On topic", "help": ""},
        ],
        "low": 1,
        "high": 7,
    }
    again = manager.get(new_round(project, "rating")).content.decode()
    assert "Kind: no harm done\nOn topic" in again


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("comparison", {"train_prompts": 0, "test_prompts": 0}, "at least one prompt"),
        ("comparison", {"train_prompts": -1}, "greater than or equal to 0"),
        ("comparison", {"overlap": 0}, "greater than or equal to 1"),
        ("comparison", {"strengths": 9}, "not one of the available choices"),
        ("comparison", {"question": " "}, "required"),
        ("rating", {"criteria": "Kind\nkind", "low": 1, "high": 5}, "stands there twice"),
        ("rating", {"criteria": "Kind", "low": 5, "high": 5}, "must be above the lowest"),
    ],
)
def test_a_round_that_cannot_be_is_refused_with_the_reason(
    manager: Client, project: Project, written: Policy, kind: str, changes: dict[str, Any], message: str
) -> None:
    before = Round.objects.count()
    response = manager.post(new_round(project, kind), filled(**changes))
    assert response.status_code == 422
    assert message in response.content.decode()
    assert Round.objects.count() == before


def test_a_project_whose_prompts_have_no_completions_is_refused(manager: Client, project: Project) -> None:
    judged.make_prompt(project, "Hi.")
    response = manager.post(new_round(project, "comparison"), filled())
    assert response.status_code == 422
    assert not Round.objects.exists()
    assert not Protocol.objects.exists()
