"""What the tests of a run's pages share."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from labeling.models import Project
from tests.training.stage import make_run
from training.models import Run

State = Run.State


@pytest.fixture
def run(project: Project, ann: User) -> Run:
    return make_run(project, ann, start_when_ready=False)


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


def put_in(run: Run, state: str, **values: Any) -> Run:
    if state == State.RUNNING:
        values = {"worker": "w", "leased_until": timezone.now() + timedelta(minutes=5), **values}
    Run.objects.filter(pk=run.pk).update(state=state, **values)
    run.refresh_from_db()
    return run
