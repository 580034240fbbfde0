"""A person's own page: another password, tokens for programs."""

from django.contrib.auth.models import User
from django.test import Client
from knox.models import AuthToken

from tests.factories import PASSWORD

NEW = "a staple of another horse"


def test_a_rater_changes_the_password_that_was_given_to_them(client: Client, ann: User) -> None:
    client.force_login(ann)
    assert "Change the password" in client.get("/account/").content.decode()
    fields = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
    page = client.post("/account/password/", fields, follow=True).content.decode()
    assert "The password is changed" in page
    ann.refresh_from_db()
    assert ann.check_password(NEW)
    assert client.get("/").status_code == 200  # still signed in here


def test_a_wrong_old_password_changes_nothing(client: Client, ann: User) -> None:
    client.force_login(ann)
    fields = {"old_password": "guessed", "new_password1": NEW, "new_password2": NEW}
    assert "entered incorrectly" in client.post("/account/password/", fields).content.decode()
    ann.refresh_from_db()
    assert ann.check_password(PASSWORD)


def test_a_token_is_shown_once_and_works(client: Client, ann: User) -> None:
    client.force_login(ann)
    page = client.post("/account/").content.decode()
    token = page.partition('<code class="mono">')[2].partition("</code>")[0]
    assert token not in client.get("/account/").content.decode()
    answer = Client().get("/api/v1/projects/", headers={"Authorization": f"Token {token}"})
    assert [project["slug"] for project in answer.json()] == ["stories"]


def test_nobody_revokes_the_token_of_another(client: Client, ann: User, bo: User) -> None:
    token, _ = AuthToken.objects.create(user=bo)
    client.force_login(ann)
    assert client.post(f"/account/tokens/{token.token_key}/revoke/").status_code == 404
    assert AuthToken.objects.filter(user=bo).exists()
    client.force_login(bo)
    assert client.post(f"/account/tokens/{token.token_key}/revoke/").status_code == 302
    assert not AuthToken.objects.exists()


def test_a_visitor_is_sent_to_sign_in(client: Client, db: None) -> None:
    for path in ("/account/", "/account/password/"):
        assert client.get(path).headers["Location"] == f"/login/?next={path}"
