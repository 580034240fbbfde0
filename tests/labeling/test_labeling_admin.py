"""An administrator looks at everything, and edits no label."""

from pathlib import Path

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.admin import ReadOnly
from labeling.imports import import_file
from labeling.models import Label, Project
from tests.labeling.test_imports import PAIRS, jsonl


@pytest.fixture
def admin_client(client: Client, project: Project, tmp_path: Path) -> Client:
    import_file(project=project, path=jsonl(tmp_path, PAIRS["explicit plain"]))
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


def test_every_list_and_every_row_opens(admin_client: Client) -> None:
    opened = 0
    for model in admin.site._registry:
        if model._meta.app_label != "labeling":
            continue
        name = f"admin:labeling_{model._meta.model_name}"
        assert admin_client.get(reverse(f"{name}_changelist")).status_code == 200
        first = model._default_manager.order_by("pk").first()
        if first is not None:
            assert admin_client.get(reverse(f"{name}_change", args=[first.pk])).status_code == 200
            opened += 1
    assert opened >= 8


def test_a_label_can_be_neither_changed_nor_deleted_nor_added(admin_client: Client) -> None:
    label = Label.objects.get()
    before = label.value
    for page in ("change", "delete"):
        address = reverse(f"admin:labeling_label_{page}", args=[label.pk])
        assert admin_client.post(address, {"value": "{}", "post": "yes"}).status_code == 403
    assert admin_client.get(reverse("admin:labeling_label_add")).status_code == 403
    assert Label.objects.get().value == before


def test_only_projects_and_their_people_can_be_changed() -> None:
    editable = {
        model.__name__
        for model, page in admin.site._registry.items()
        if model._meta.app_label == "labeling" and not isinstance(page, ReadOnly)
    }
    assert editable == {"Project"}
