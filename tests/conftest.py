"""The cast: ann and bo rate, mia manages, zed may do nothing. tests/factories.py has plain functions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from labeling.models import Membership, Project
from tests import factories


@pytest.fixture(autouse=True)
def _settings_for_tests(settings: "pytest.FixtureRequest", tmp_path: Path) -> Iterator[None]:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # type: ignore[attr-defined]
    settings.STORAGES = {  # type: ignore[attr-defined]
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    settings.DATASETS_DIR = tmp_path / "datasets"  # type: ignore[attr-defined]
    settings.RUNS_DIR = tmp_path / "runs"  # type: ignore[attr-defined]
    yield


@pytest.fixture
def project(db: None) -> Project:
    return factories.make_project()


@pytest.fixture
def ann(project: Project) -> User:
    return factories.make_user("ann", project, Membership.Role.RATER)


@pytest.fixture
def bo(project: Project) -> User:
    return factories.make_user("bo", project, Membership.Role.RATER)


@pytest.fixture
def mia(project: Project) -> User:
    return factories.make_user("mia", project, Membership.Role.MANAGER)


@pytest.fixture
def zed(db: None) -> User:
    return factories.make_user("zed")
