"""The pages of a project: make one, and say what it is, who belongs to it and who writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from labeling.models import Membership, Policy, Project, Protocol
from labeling.prompts import add_prompts
from tests import factories
from tests.labeling.test_policies import make_model

SETTINGS_POSTS = {
    "project_details": {"name": "Renamed", "guidelines": "Be *fair*."},
    "project_policy": {"source": "other", "location": "org/model"},
    "project_held_out": {"test_percent": "25"},
    "member_set": {"username": "zed", "role": "rater"},
}


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def models(settings: Any, tmp_path: Path) -> Path:
    settings.MODEL_DIRS = [tmp_path / "models"]
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def a_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def may_make_projects(user: User) -> User:
    user.user_permissions.add(Permission.objects.get(codename="add_project"))
    return user


def settings_of(project: Project) -> str:
    return reverse("project_settings", args=[project.slug])


# A new project


def test_its_maker_manages_a_new_project(client: Client, zed: User) -> None:
    client.force_login(may_make_projects(zed))
    assert client.get(reverse("project_new")).status_code == 200
    response = client.post(
        reverse("project_new"),
        {
            "name": "  New   one ",
            "guidelines": "Be kind.",
            "source": "other",
            "location": "org/model",
            "test_percent": 15,
        },
    )
    made = Project.objects.get()
    assert response["Location"] == settings_of(made)
    assert (made.name, made.slug, made.test_percent) == ("New one", "new-one", 15)
    assert Project.objects.managed_by(zed).get() == made
    assert made.current_policy is not None
    assert (made.current_policy.location, made.current_policy.state) == ("org/model", Policy.State.PROMOTED)


def test_the_starter_is_one_choice_away(client: Client, zed: User, settings: Any, tmp_path: Path) -> None:
    settings.STARTER_POLICY = a_model(tmp_path / "starter")
    client.force_login(may_make_projects(zed))
    client.post(reverse("project_new"), {"name": "New one", "source": "starter", "test_percent": 10})
    policy = Project.objects.get().current_policy
    assert policy is not None
    assert (policy.name, policy.location) == ("starter", str(tmp_path / "starter"))


def test_a_project_can_begin_without_a_policy(client: Client, zed: User) -> None:
    client.force_login(may_make_projects(zed))
    client.post(reverse("project_new"), {"name": "New", "source": "none", "test_percent": 10})
    made = Project.objects.get()
    assert made.current_policy is None
    assert made.slug != "new"  # that address makes projects
    assert client.get(settings_of(made)).status_code == 200


def test_who_may_not_make_projects_is_told_so(client: Client, mia: User, zed: User) -> None:
    assert client.get(reverse("project_new")).status_code == 302
    for person in (mia, zed):
        client.force_login(person)
        assert client.get(reverse("project_new")).status_code == 403
        assert client.post(reverse("project_new"), {"name": "x"}).status_code == 403
    assert Project.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "required"),
        ({"name": "Stories"}, "a project of that name already"),
        ({"name": "x" * 121}, "at most 120"),
        ({"test_percent": 91}, "less than or equal to 90"),
        ({"source": "elsewhere"}, "valid choice"),
        ({"location": ""}, "Name a folder on the server or a hub id"),
        ({"location": "https://example.org/model"}, "neither an absolute folder nor a hub id"),
        ({"location": "org/../../etc"}, "neither an absolute folder nor a hub id"),
        ({"location": "/etc"}, "outside the folders for models"),
        ({"guidelines": "a\0b"}, "Null characters"),
    ],
)
def test_a_project_that_cannot_be_is_not_made(
    client: Client, project: Project, zed: User, change: dict[str, Any], message: str
) -> None:
    client.force_login(may_make_projects(zed))
    data = {"name": "New one", "source": "other", "location": "org/model", "test_percent": 10, **change}
    response = client.post(reverse("project_new"), data)
    assert response.status_code == 422
    assert message in response.content.decode()
    assert Project.objects.count() == 1


def test_two_names_with_the_same_slug_get_two_addresses(client: Client, project: Project, zed: User) -> None:
    client.force_login(may_make_projects(zed))
    client.post(reverse("project_new"), {"name": "stories!", "source": "none", "test_percent": 10})
    assert sorted(Project.objects.values_list("slug", flat=True)) == ["stories", "stories-2"]


# Settings


def test_the_settings_show_everything(manager: Client, project: Project, ann: User) -> None:
    content = manager.get(settings_of(project)).content.decode()
    assert "Prefer the <strong>kind</strong> one." in content
    assert "ann" in content and "mia" in content
    assert "There is no policy yet" in content


def test_name_and_guidelines_are_saved(manager: Client, project: Project) -> None:
    manager.post(reverse("project_details", args=[project.slug]), SETTINGS_POSTS["project_details"])
    project.refresh_from_db()
    assert (project.name, project.guidelines) == ("Renamed", "Be *fair*.")


def test_a_name_that_is_taken_comes_back_and_changes_nothing(manager: Client, project: Project) -> None:
    factories.make_project("Other")
    address = reverse("project_details", args=[project.slug])
    response = manager.post(address, {"name": "Other", "guidelines": "lost?"})
    assert response.status_code == 422
    assert b"lost?" in response.content
    project.refresh_from_db()
    assert project.name == "Stories"


def test_the_preview_renders_and_stores_nothing(manager: Client, project: Project) -> None:
    response = manager.post(reverse("guidelines_preview"), {"guidelines": "**new** <script>x</script>"})
    assert b"<strong>new</strong>" in response.content
    assert b"<script" not in response.content
    assert b"<html" not in response.content
    project.refresh_from_db()
    assert "new" not in project.guidelines


def test_people_are_added_change_their_role_and_leave(manager: Client, project: Project, zed: User) -> None:
    address = reverse("member_set", args=[project.slug])
    manager.post(address, {"username": "zed", "role": "rater"})
    assert Membership.objects.get(user=zed).role == "rater"
    manager.post(address, {"username": "zed", "role": "manager"})
    assert Membership.objects.get(user=zed).role == "manager"
    manager.post(reverse("member_remove", args=[project.slug, zed.pk]))
    assert not Membership.objects.filter(user=zed).exists()


def test_the_last_manager_can_neither_leave_nor_become_a_rater(
    manager: Client, project: Project, mia: User
) -> None:
    response = manager.post(reverse("member_set", args=[project.slug]), {"username": "mia", "role": "rater"})
    assert response.status_code == 422
    assert b"keeps at least one manager" in response.content
    response = manager.post(reverse("member_remove", args=[project.slug, mia.pk]), follow=True)
    assert b"keeps at least one manager" in response.content
    assert Membership.objects.get(user=mia).role == "manager"


def test_a_manager_who_is_not_the_last_can_leave(manager: Client, project: Project, mia: User) -> None:
    factories.make_user("max", project, Membership.Role.MANAGER)
    response = manager.post(reverse("member_remove", args=[project.slug, mia.pk]))
    assert response["Location"] == reverse("home")
    assert not Membership.objects.filter(user=mia).exists()


@pytest.mark.parametrize(
    "data", [{"username": "nobody", "role": "rater"}, {"username": "zed", "role": "king"}]
)
def test_nobody_and_no_role_are_refused(
    manager: Client, project: Project, zed: User, data: dict[str, str]
) -> None:
    assert manager.post(reverse("member_set", args=[project.slug]), data).status_code == 422
    assert not Membership.objects.filter(user=zed).exists()


def test_an_account_that_is_shut_cannot_join(manager: Client, project: Project, zed: User) -> None:
    User.objects.filter(pk=zed.pk).update(is_active=False)
    data = {"username": "zed", "role": "rater"}
    assert manager.post(reverse("member_set", args=[project.slug]), data).status_code == 422


def test_a_changed_protocol_is_a_new_version_and_the_same_one_is_not(
    manager: Client, project: Project
) -> None:
    address = reverse("project_protocol", args=[project.slug, "comparison"])
    data = {"question": "Which is kinder?", "strengths": "2", "tie": "on"}
    manager.post(address, data)
    manager.post(address, data)
    manager.post(address, {**data, "both_bad": "on"})
    first, second = Protocol.objects.order_by("version")
    assert first.options == {"strengths": 2, "tie": True, "both_bad": False}
    assert second.options == {"strengths": 2, "tie": True, "both_bad": True}
    assert "Which is kinder?" in manager.get(settings_of(project)).content.decode()


def test_a_rating_keeps_its_criteria_on_the_page(manager: Client, project: Project) -> None:
    address = reverse("project_protocol", args=[project.slug, "rating"])
    manager.post(
        address, {"question": "How good?", "criteria": "Kind: towards all\nTrue", "low": 1, "high": 7}
    )
    options = Protocol.objects.get().options
    assert [c["name"] for c in options["criteria"]] == ["Kind", "True"]
    assert (options["low"], options["high"]) == (1, 7)
    assert "Kind: towards all\nTrue" in manager.get(settings_of(project)).content.decode()


def test_a_scale_that_is_none_is_refused(manager: Client, project: Project) -> None:
    address = reverse("project_protocol", args=[project.slug, "rating"])
    response = manager.post(address, {"question": "Q", "criteria": "A", "low": 5, "high": 5})
    assert response.status_code == 422
    assert b"must be above the lowest" in response.content
    assert not Protocol.objects.exists()


def test_what_is_allowed_stands_in_a_row_of_its_own(manager: Client, project: Project) -> None:
    page = manager.get(settings_of(project) + "?kind=comparison").content.decode()
    fields, allowed = page.split('<div class="row allowed">')
    assert 'name="strengths"' in fields and 'name="tie"' not in fields
    assert 'name="tie"' in allowed and 'name="both_bad"' in allowed
    assert (
        '<div class="row allowed">' not in manager.get(settings_of(project) + "?kind=rating").content.decode()
    )


def test_the_box_for_guidelines_is_small_until_there_are_some(manager: Client, project: Project) -> None:
    assert 'rows="12"' in manager.get(settings_of(project)).content.decode()
    Project.objects.update(guidelines="")
    page = manager.get(settings_of(project)).content.decode()
    assert 'rows="4"' in page and 'rows="12"' not in page


def test_a_new_project_and_its_settings_agree_on_what_can_change(
    client: Client, zed: User, manager: Client, project: Project
) -> None:
    assert "Fixed as soon as there are prompts" in manager.get(settings_of(project)).content.decode()
    client.force_login(may_make_projects(zed))
    page = client.get(reverse("project_new")).content.decode()
    assert "the held-out share only until the first prompts are in" in page


def test_an_unknown_kind_of_protocol_is_not_found(manager: Client, project: Project) -> None:
    assert manager.post(reverse("project_protocol", args=[project.slug, "duel"]), {}).status_code == 404


def test_a_folder_below_the_models_becomes_the_policy(
    manager: Client, project: Project, models: Path
) -> None:
    folder = a_model(models / "mine")
    address = reverse("project_policy", args=[project.slug])
    manager.post(address, {"source": "other", "location": str(folder)})
    manager.post(address, {"source": "other", "location": str(folder)})
    project.refresh_from_db()
    assert project.current_policy is not None
    assert (project.current_policy.name, project.current_policy.location) == ("mine", str(folder))
    assert project.policies.count() == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: (m / "config.json").unlink(), "config.json cannot be read"),
        (lambda m: (m / "config.json").write_text("[]"), "names no model_type"),
        (lambda m: (m / "config.json").write_text('{"model_type": "x", "auto_map": {}}'), "code of its own"),
        (lambda m: (m / "pytorch_model.bin").write_bytes(b""), "pickled weights"),
        (lambda m: (m / "model.safetensors").unlink(), "no weights"),
        (lambda m: (m / "tokenizer.json").unlink(), "no tokenizer"),
    ],
)
def test_a_folder_that_is_no_safe_model_is_refused(
    manager: Client, project: Project, models: Path, spoil: Any, message: str
) -> None:
    folder = a_model(models / "mine")
    spoil(folder)
    address = reverse("project_policy", args=[project.slug])
    response = manager.post(address, {"source": "other", "location": str(folder)})
    assert response.status_code == 422
    assert message in response.content.decode()
    assert not project.policies.exists()


@pytest.mark.parametrize("way_out", ["../outside", "link"])
def test_no_path_leads_out_of_the_models(
    manager: Client, project: Project, models: Path, tmp_path: Path, way_out: str
) -> None:
    outside = a_model(tmp_path / "outside")
    (models / "link").symlink_to(outside)
    address = reverse("project_policy", args=[project.slug])
    response = manager.post(address, {"source": "other", "location": str(models / way_out)})
    assert response.status_code == 422
    assert "outside the folders for models" in response.content.decode()


def test_the_held_out_share_changes_until_there_are_prompts(manager: Client, project: Project) -> None:
    address = reverse("project_held_out", args=[project.slug])
    manager.post(address, {"test_percent": 25})
    project.refresh_from_db()
    assert project.test_percent == 25
    add_prompts(project=project, conversations=[[{"role": "user", "content": "Q"}]])
    response = manager.post(address, {"test_percent": 50})
    assert response.status_code == 422
    assert b"keeps its side for ever" in response.content
    project.refresh_from_db()
    assert project.test_percent == 25


# Who may not, and how not


def posts(project: Project, member: int) -> list[tuple[str, dict[str, str]]]:
    named = [(reverse(name, args=[project.slug]), data) for name, data in SETTINGS_POSTS.items()]
    return [
        *named,
        (reverse("project_protocol", args=[project.slug, "ranking"]), {"question": "Q"}),
        (reverse("member_remove", args=[project.slug, member]), {}),
    ]


def test_a_rater_an_outsider_and_a_visitor_see_and_change_nothing(
    client: Client, project: Project, ann: User, mia: User, zed: User
) -> None:
    before = (project.memberships.count(), Project.objects.values().get())
    for address, data in [(settings_of(project), None), *posts(project, mia.pk)]:
        client.logout()
        assert client.post(address, data).status_code in (302, 405)
        for person in (ann, zed):
            client.force_login(person)
            response = client.get(address) if data is None else client.post(address, data)
            assert response.status_code == 404, address
    assert (project.memberships.count(), Project.objects.values().get()) == before
    assert not Protocol.objects.exists()


def test_a_manager_of_another_project_is_an_outsider(manager: Client) -> None:
    other = factories.make_project("Other")
    assert manager.get(settings_of(other)).status_code == 404
    for address, data in posts(other, 1):
        assert manager.post(address, data).status_code == 404


def test_bad_ids_are_not_found(manager: Client, project: Project, zed: User) -> None:
    assert manager.get(reverse("project_settings", args=["nowhere"])).status_code == 404
    assert manager.post(reverse("member_remove", args=[project.slug, zed.pk])).status_code == 404


def test_wrong_methods_are_refused(manager: Client, project: Project, mia: User) -> None:
    assert manager.post(settings_of(project), {}).status_code == 405
    assert manager.get(reverse("guidelines_preview")).status_code == 405
    for address, _ in posts(project, mia.pk):
        assert manager.get(address).status_code == 405


def test_a_project_can_go_back_to_a_policy_that_it_trained_itself(
    manager: Client, project: Project, settings: Any
) -> None:
    folder = make_model(settings.RUNS_DIR / "7" / "model")
    fields = {"source": "other", "location": str(folder)}
    address = reverse("project_policy", args=[project.slug])
    assert manager.post(address, fields).status_code == 422  # nobody's, as far as this project knows
    own = factories.make_policy(project, "policy 2")
    own.location = str(folder)
    own.save()
    assert manager.post(address, fields).status_code == 302
    project.refresh_from_db()
    assert project.current_policy == own
