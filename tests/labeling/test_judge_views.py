"""The raters' pages over HTTP: the five that every view is asked, with htmx and without."""

import re
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.template.loader import get_template
from django.test import Client
from pytest_django.fixtures import DjangoAssertNumQueries

from labeling.blinding import blind_name
from labeling.models import Assignment, Label, Project, Protocol, RaterProgress, Round, Skip
from labeling.rounds import close_round
from tests import factories
from tests.labeling.open_round import make_open_round, make_waiting_round

HTMX = {"HX-Request": "true"}


@pytest.fixture
def round(project: Project) -> Round:
    return make_open_round(project, tasks=4)


@pytest.fixture
def client(ann: User) -> Client:
    return signed_in(ann)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def held(user: User) -> Assignment:
    return Assignment.objects.get(rater=user, state=Assignment.State.LEASED)


def start(client: Client, round: Round) -> Assignment:
    """Open the round as a rater does, and return what they were given."""
    assert client.get(f"/rounds/{round.pk}/judge/").status_code == 200
    return Assignment.objects.filter(round=round, state=Assignment.State.LEASED).latest("leased_at")


def send(client: Client, assignment: Assignment, *, htmx: bool = True, **fields: str) -> HttpResponse:
    return send_all(client, assignment, fields, htmx=htmx)


def send_all(
    client: Client, assignment: Assignment, fields: dict[str, str], *, htmx: bool = True
) -> HttpResponse:
    """Fields whose names are no names in Python."""
    data = {"key": str(uuid.uuid4()), "seconds": "2.5", **fields}
    headers = HTMX if htmx else {}
    return client.post(f"/assignments/{assignment.pk}/label/", data, headers=headers)  # type: ignore[return-value]


def text_of(response: Any) -> str:
    return response.content.decode()


def is_fragment(response: Any) -> bool:
    return text_of(response).lstrip().startswith("<section") and "<html" not in text_of(response)


def test_a_page_that_stays_open_learns_that_its_round_is_closed(client: Client, round: Round) -> None:
    first = start(client, round)
    close_round(round)
    response = client.post(f"/assignments/{first.pk}/renew/", headers=HTMX)
    assert response.status_code == 409 and "This round is closed" in text_of(response)


# The page


def test_a_rater_gets_a_task_with_its_texts_in_the_order_of_the_assignment(
    client: Client, round: Round, ann: User
) -> None:
    page = text_of(client.get(f"/rounds/{round.pk}/judge/"))
    assignment = held(ann)
    texts = {c.pk: c.html for c in assignment.task.completions.all()}
    places = [page.index(texts[pk]) for pk in assignment.shown]
    assert places == sorted(places)
    assert "Tell me story" in page and "Prefer the <strong>kind</strong> one." in page


def test_asking_again_shows_the_same_task(client: Client, round: Round) -> None:
    first = start(client, round)
    assert start(client, round) == first
    assert Assignment.objects.filter(state="leased").count() == 1


def test_a_stranger_does_not_see_that_the_round_exists(round: Round, zed: User) -> None:
    assert signed_in(zed).get(f"/rounds/{round.pk}/judge/").status_code == 404
    assert signed_in(zed).post(f"/rounds/{round.pk}/undo/").status_code == 404


def test_a_rater_of_another_project_does_not_see_it(round: Round) -> None:
    other = factories.make_user("eve", factories.make_project("Other"))
    assert signed_in(other).get(f"/rounds/{round.pk}/judge/").status_code == 404


def test_who_is_not_signed_in_is_asked_to(round: Round, db: None) -> None:
    response = Client().get(f"/rounds/{round.pk}/judge/")
    assert response.status_code == 302 and response["Location"].startswith("/login/")


def test_a_round_that_is_not_there_is_404(client: Client) -> None:
    assert client.get("/rounds/999999/judge/").status_code == 404


@pytest.mark.parametrize("path", ["/rounds/1/undo/", "/assignments/1/label/", "/assignments/1/skip/"])
def test_what_changes_something_refuses_get(client: Client, path: str) -> None:
    assert client.get(path).status_code == 405


def test_a_task_is_not_posted_to(client: Client, round: Round) -> None:
    assert client.post(f"/rounds/{round.pk}/judge/").status_code == 405


def test_a_closed_round_says_so(client: Client, round: Round) -> None:
    close_round(round)
    response = client.get(f"/rounds/{round.pk}/judge/")
    assert response.status_code == 200 and "This round is closed" in text_of(response)


def test_a_round_without_completions_says_that_it_waits(client: Client, project: Project) -> None:
    round = make_waiting_round(project, tasks=1)
    assert "waits for completions" in text_of(client.get(f"/rounds/{round.pk}/judge/"))


def test_no_page_names_a_policy_or_a_purpose(client: Client, round: Round, project: Project) -> None:
    project.policies.update(name="unmistakable-name")
    response = client.get(f"/rounds/{round.pk}/judge/")
    following = send(client, start(client, round), choice="tie")
    for page in (response, following):
        assert "unmistakable-name" not in text_of(page)
        assert not re.search(r"\b(gate|train|policy)\b", re.sub(r"<[^>]*>", "", text_of(page)))


# Saving


def test_saving_stores_the_label_and_brings_the_next_task(client: Client, round: Round, ann: User) -> None:
    first = start(client, round)
    response = send(client, first, choice=f"{blind_name(first.shown[1])}:3")
    label = Label.objects.get()
    assert label.value == {"outcome": "preferred", "preferred": first.shown[1], "strength": 3}
    assert (label.rater, label.assignment, label.seconds, label.shown) == (ann, first, 2.5, first.shown)
    assert is_fragment(response) and f"/assignments/{held(ann).pk}/label/" in text_of(response)
    assert held(ann) != first


def test_without_htmx_saving_redirects_to_the_next_task(client: Client, round: Round) -> None:
    response = send(client, start(client, round), choice="tie", htmx=False)
    assert response.status_code == 302 and response["Location"] == f"/rounds/{round.pk}/judge/"
    assert Label.objects.get().value == {"outcome": "tie"}


def test_the_same_form_twice_is_one_label(client: Client, round: Round) -> None:
    first, key = start(client, round), str(uuid.uuid4())
    answers = [send(client, first, choice="tie", key=key) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 200]
    assert Label.objects.count() == 1
    assert RaterProgress.objects.get().labels == 1


def test_a_second_tab_is_told_that_the_first_answer_stands(client: Client, round: Round, ann: User) -> None:
    first = start(client, round)
    send(client, first, choice="tie")
    response = send(client, first, choice="both_bad")
    assert response.status_code == 409 and "that answer stands" in text_of(response)
    assert f"/assignments/{held(ann).pk}/label/" in text_of(response)
    assert [label.value for label in Label.objects.all()] == [{"outcome": "tie"}]


@pytest.mark.parametrize("choice", ["", "everything", "1:", "7:2", ":3", "1:9", "-1:1"])
@pytest.mark.parametrize("htmx", [True, False])
def test_an_answer_that_is_none_is_refused_and_the_task_stays(
    client: Client, round: Round, ann: User, choice: str, htmx: bool
) -> None:
    first = start(client, round)
    response = send(client, first, choice=choice, htmx=htmx)
    assert response.status_code == 422 and 'role="alert"' in text_of(response)
    assert is_fragment(response) == htmx
    assert held(ann) == first and not Label.objects.exists()


def test_a_form_without_its_key_is_refused(client: Client, round: Round) -> None:
    assert send(client, start(client, round), choice="tie", key="no-uuid").status_code == 422


@pytest.mark.parametrize("seconds", ["", "soon", "-5", "nan", "1e400"])
def test_a_strange_measure_of_time_never_costs_a_label(client: Client, round: Round, seconds: str) -> None:
    assert send(client, start(client, round), choice="tie", seconds=seconds).status_code == 200
    assert 0 <= Label.objects.get().seconds < 60


def test_a_label_for_somebody_elses_task_is_refused(client: Client, round: Round, bo: User) -> None:
    theirs = start(signed_in(bo), round)
    response = send(client, theirs, choice="tie")
    assert response.status_code == 409 and not Label.objects.exists()


def test_a_stranger_cannot_label(client: Client, round: Round, zed: User) -> None:
    assert send(signed_in(zed), start(client, round), choice="tie").status_code == 404


def test_an_assignment_that_is_not_there_is_404(client: Client) -> None:
    assert client.post("/assignments/999999/label/").status_code == 404


@pytest.mark.parametrize("htmx", [True, False])
def test_a_label_that_comes_after_the_round_closed_is_not_stored(
    client: Client, round: Round, htmx: bool
) -> None:
    first = start(client, round)
    close_round(round)
    response = send(client, first, choice="tie", htmx=htmx)
    assert response.status_code == 409 and "This round is closed" in text_of(response)
    assert not Label.objects.exists()


def test_at_the_end_the_rater_is_thanked(client: Client, round: Round) -> None:
    for _ in range(4):
        response = send(client, start(client, round), choice="tie")
    assert "Nothing is left for you here" in text_of(response)
    assert "4 of 4 in all" in text_of(response)


def test_a_cycle_costs_few_queries(
    client: Client, round: Round, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    first = start(client, round)
    with django_assert_max_num_queries(16):  # savepoints of the test count as well
        send(client, first, choice="tie")


# Rating and ranking


def test_scores_are_stored_by_criterion(client: Client, project: Project) -> None:
    round = make_open_round(project, tasks=2, kind=Protocol.Kind.RATING)
    send_all(client, start(client, round), {"score-overall": "4"})
    assert Label.objects.get().value == {"scores": {"overall": 4}}


@pytest.mark.parametrize("score", ["", "0", "6", "good"])
def test_a_score_off_the_scale_is_refused(client: Client, project: Project, score: str) -> None:
    round = make_open_round(project, tasks=1, kind=Protocol.Kind.RATING)
    response = send_all(client, start(client, round), {"score-overall": score})
    assert response.status_code == 422 and "Overall" in text_of(response)


def test_ranks_are_stored_by_completion(client: Client, project: Project) -> None:
    round = make_open_round(project, tasks=1, kind=Protocol.Kind.RANKING)
    first = start(client, round)
    a, b, c, d = first.shown
    given = zip((a, b, c, d), ("2", "1", "2", ""), strict=True)
    send_all(client, first, {f"rank-{blind_name(pk)}": rank for pk, rank in given})
    assert Label.objects.get().value == {"ranks": {str(a): 2, str(b): 1, str(c): 2}}


def test_a_refused_ranking_comes_back_as_it_was_entered(client: Client, project: Project) -> None:
    round = make_open_round(project, tasks=1, kind=Protocol.Kind.RANKING)
    first = start(client, round)
    response = send_all(client, first, {f"rank-{blind_name(first.shown[2])}": "7"})
    assert response.status_code == 422 and "at least two" in text_of(response)
    assert re.search(rf'name="rank-{blind_name(first.shown[2])}"[^>]* value="7"', text_of(response))


def test_another_answer_with_the_same_key_is_not_taken_for_saved(
    client: Client, round: Round, ann: User
) -> None:
    """The response to the first got lost, and the rater thought better of it."""
    first, key = start(client, round), str(uuid.uuid4())
    send(client, first, choice="tie", key=key)
    response = send(client, first, choice="both_bad", key=key)
    assert response.status_code == 409
    assert "Your first answer to that task had arrived" in text_of(response)
    assert [label.value for label in Label.objects.all()] == [{"outcome": "tie"}]
    assert held(ann).pk in {int(pk) for pk in re.findall(r"/assignments/(\d+)/label/", text_of(response))}


def test_a_page_of_somebody_who_signed_out_saves_nothing_for_who_signed_in(
    client: Client, round: Round, ann: User, bo: User
) -> None:
    first = start(client, round)
    client.force_login(bo)  # in another tab
    fields = {"key": str(uuid.uuid4()), "choice": "tie"}
    headers = {**HTMX, "X-Page-Of": str(ann.pk)}
    response = client.post(f"/assignments/{first.pk}/label/", fields, headers=headers)
    assert response.status_code == 403
    assert "Somebody else has signed in" in text_of(response)
    assert not Label.objects.exists() and not Assignment.objects.filter(rater=bo).exists()


def test_the_page_does_not_tell_which_completion_came_first(client: Client, round: Round, ann: User) -> None:
    page = text_of(client.get(f"/rounds/{round.pk}/judge/"))
    names = set(re.findall(r'value="([^":]+):\d"', page))
    assert names == {blind_name(pk) for pk in held(ann).shown}
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


def test_a_completion_of_another_task_is_refused(client: Client, round: Round) -> None:
    first = start(client, round)
    foreign = Assignment.objects.exclude(task=first.task_id).first()
    assert foreign is not None
    response = send(client, first, choice=f"{blind_name(foreign.shown[0])}:2")
    assert response.status_code == 422
    assert "Choose one of the two completions" in text_of(response)


# Skip, undo, renew


def test_a_skipped_task_does_not_come_back(client: Client, round: Round, ann: User) -> None:
    first = start(client, round)
    response = client.post(f"/assignments/{first.pk}/skip/", {"reason": "The text is broken"}, headers=HTMX)
    assert is_fragment(response) and held(ann).task_id != first.task_id
    assert Skip.objects.get().reason == "The text is broken"


def test_without_htmx_a_skip_redirects(client: Client, round: Round) -> None:
    response = client.post(f"/assignments/{start(client, round).pk}/skip/", {"reason": "I know the author"})
    assert response.status_code == 302 and Skip.objects.get().reason == "I know the author"


def test_a_skip_needs_a_reason(client: Client, round: Round, ann: User) -> None:
    first = start(client, round)
    response = client.post(f"/assignments/{first.pk}/skip/", {"reason": " "}, headers=HTMX)
    assert response.status_code == 422 and "Say why" in text_of(response)
    assert held(ann) == first and not Skip.objects.exists()


def test_a_stranger_cannot_skip(client: Client, round: Round, zed: User) -> None:
    path = f"/assignments/{start(client, round).pk}/skip/"
    assert signed_in(zed).post(path, {"reason": "x"}).status_code == 404


def test_nobody_skips_in_a_closed_round(client: Client, round: Round) -> None:
    first = start(client, round)
    close_round(round)
    response = client.post(f"/assignments/{first.pk}/skip/", {"reason": "x"}, headers=HTMX)
    assert response.status_code == 409 and "closed" in text_of(response)


def test_undo_shows_the_last_task_as_it_was_answered(client: Client, round: Round, ann: User) -> None:
    first = start(client, round)
    value = f"{blind_name(first.shown[0])}:2"
    send(client, first, choice=value)
    response = client.post(f"/rounds/{round.pk}/undo/", headers=HTMX)
    assert response.status_code == 200 and held(ann) == first
    assert re.search(rf'value="{value}"[^>]*aria-current="true"', text_of(response))
    assert RaterProgress.objects.get().labels == 0


def test_without_htmx_undo_redirects_and_says_so(client: Client, round: Round, ann: User) -> None:
    first = start(client, round)
    send(client, first, choice="tie")
    response = client.post(f"/rounds/{round.pk}/undo/", follow=True)
    assert response.redirect_chain and held(ann) == first
    assert "Your last label is taken back" in text_of(response)


def test_without_javascript_an_undone_task_comes_as_it_was_answered(
    client: Client, round: Round, ann: User
) -> None:
    first = start(client, round)
    send(client, first, choice="tie", htmx=False)
    page = text_of(client.post(f"/rounds/{round.pk}/undo/", follow=True))
    chosen = re.findall(r'value="([^"]+)"[^>]* class="[^"]*chosen', page)
    assert chosen == ["tie"]
    send(client, first, choice=f"{blind_name(first.shown[0])}:3", htmx=False)
    assert "chosen" not in text_of(client.get(f"/rounds/{round.pk}/judge/"))


def test_what_became_of_the_task_before_is_said(client: Client, round: Round) -> None:
    saved = send(client, start(client, round), choice="tie")
    assert 'data-announcement="Saved. Task 2."' in text_of(saved)
    current = Assignment.objects.get(state=Assignment.State.LEASED)
    skipped = client.post(f"/assignments/{current.pk}/skip/", {"reason": "x"}, headers=HTMX)
    assert 'data-announcement="Skipped. Task 2."' in text_of(skipped)


def test_there_may_be_nothing_to_undo(client: Client, round: Round) -> None:
    start(client, round)
    response = client.post(f"/rounds/{round.pk}/undo/", headers=HTMX)
    assert response.status_code == 409 and "no label of yours" in text_of(response)


def test_nobody_undoes_in_a_closed_round(client: Client, round: Round) -> None:
    send(client, start(client, round), choice="tie")
    close_round(round)
    assert client.post(f"/rounds/{round.pk}/undo/", headers=HTMX).status_code == 409
    assert Label.objects.count() == 1


def test_a_lease_is_renewed_without_a_word(client: Client, round: Round, ann: User) -> None:
    first = start(client, round)
    response = client.post(f"/assignments/{first.pk}/renew/", headers=HTMX)
    assert response.status_code == 204
    assert str(held(ann).leased_until) > str(first.leased_until)


def test_a_lost_lease_is_told(client: Client, round: Round, bo: User) -> None:
    theirs = start(signed_in(bo), round)
    response = client.post(f"/assignments/{theirs.pk}/renew/", headers=HTMX)
    assert response.status_code == 409 and "no longer yours" in text_of(response)


# The start


def test_the_start_lists_what_there_is_to_judge(client: Client, round: Round) -> None:
    page = text_of(client.get("/"))
    assert f"/rounds/{round.pk}/judge/" in page and "Start judging" in page and "0 of 4 labels" in page
    send(client, start(client, round), choice="tie")
    assert "1 of 4 labels, 1 by you" in text_of(client.get("/"))


def test_the_start_hides_closed_rounds_and_other_projects(client: Client, round: Round) -> None:
    other = make_open_round(factories.make_project("Secret"), tasks=1)
    close_round(round)
    page = text_of(client.get("/"))
    assert "Secret" not in page and f"/rounds/{other.pk}/" not in page
    assert "Nothing to judge right now" in page


def test_a_manager_sees_projects_and_a_rater_does_not(client: Client, round: Round, mia: User) -> None:
    assert "Projects you manage" in text_of(signed_in(mia).get("/"))
    assert "Projects you manage" not in text_of(client.get("/"))


def test_only_who_may_make_projects_is_offered_to(client: Client, round: Round, mia: User) -> None:
    assert "New project" not in text_of(signed_in(mia).get("/"))
    mia.user_permissions.add(Permission.objects.get(codename="add_project"))
    assert "New project" in text_of(signed_in(mia).get("/"))


def test_who_belongs_nowhere_is_welcomed(zed: User) -> None:
    assert "You belong to no project yet" in text_of(signed_in(zed).get("/"))


# Signing in


def test_a_wrong_password_is_told_and_too_many_lock_even_the_right_one(ann: User) -> None:
    client = Client()
    for _ in range(7):
        response = client.post("/login/", {"username": "ann", "password": "wrong"})
        assert response.status_code == 200 and 'role="alert"' in text_of(response)
    client.post("/login/", {"username": "ann", "password": "wrong"})
    locked = client.post("/login/", {"username": "ann", "password": factories.PASSWORD})
    assert locked.status_code == 429 and "Too many attempts" in text_of(locked)


def test_logging_out_gives_the_task_back(client: Client, round: Round) -> None:
    start(client, round)
    assert client.post("/logout/").status_code == 302
    assert not Assignment.objects.filter(state="leased").exists()


def test_pages_for_errors_render(client: Client) -> None:
    assert "There is nothing here" in text_of(client.get("/nowhere/"))
    assert "Something broke" in get_template("500.html").render({})
    assert "may not do that" in get_template("403.html").render({})
