"""Nobody ends in front of an empty page: after signing in again, or at an address that only takes forms."""

from django.contrib.auth.models import User
from django.test import Client

from labeling.models import Project
from tests.labeling.open_round import make_open_round


def test_who_signs_in_again_comes_back_to_the_page_and_not_to_the_forms_address(
    client: Client, project: Project
) -> None:
    round = make_open_round(project, tasks=1)
    page = f"http://testserver/rounds/{round.pk}/judge/"
    response = client.post("/assignments/1/label/", {"choice": "tie"}, headers={"Referer": page})
    assert response.headers["Location"] == f"/login/?next=%2Frounds%2F{round.pk}%2Fjudge%2F"


def test_a_foreign_page_is_no_way_back(client: Client) -> None:
    response = client.post("/assignments/1/label/", headers={"Referer": "https://evil.example//evil.example"})
    assert response.headers["Location"] == "/login/?next=/assignments/1/label/"


def test_a_browser_that_opens_a_forms_address_comes_to_the_start(client: Client, ann: User) -> None:
    client.force_login(ann)
    navigating = {"Sec-Fetch-Mode": "navigate"}
    assert client.get("/rounds/1/undo/", headers=navigating).headers["Location"] == "/"
    assert client.get("/rounds/1/undo/").status_code == 405  # a program is told what is wrong
