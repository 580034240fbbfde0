"""The cast: ann and bo rate, mia manages, zed may do nothing. tests/factories.py has plain functions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connections

from labeling.models import Membership, Project
from tests import factories


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    django_db_modify_db_settings_parallel_suffix: None,
) -> None:
    """A database in a file for browser tests: the server's threads wait for each other there, in memory
    they would fail. Said here because whichever test asks first decides for the whole session."""
    database = connections["default"].settings_dict
    browser = any(item.get_closest_marker("browser") for item in request.session.items)
    if browser and database["ENGINE"].endswith("sqlite3"):
        database["TEST"]["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")


@pytest.fixture(autouse=True)
def _settings_for_tests(settings: "pytest.FixtureRequest", tmp_path: Path) -> Iterator[None]:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # type: ignore[attr-defined]
    settings.STORAGES = {  # type: ignore[attr-defined]
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    settings.DATASETS_DIR = tmp_path / "datasets"  # type: ignore[attr-defined]
    settings.RUNS_DIR = tmp_path / "runs"  # type: ignore[attr-defined]
    settings.PLAYGROUND_DIR = tmp_path / "playground"  # type: ignore[attr-defined]
    settings.EXPORTS_DIR = tmp_path / "exports"  # type: ignore[attr-defined]
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
