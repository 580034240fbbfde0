"""The same tests of assignment on PostgreSQL, whose locks differ: SQLite runs them everywhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import postgres_cluster

HERE = Path(__file__).parent
MODULES = ["test_assignment.py", "test_labels.py", "test_rounds.py", "test_assignment_states.py"]


@pytest.mark.postgres
def test_assignment_holds_on_postgres_as_well() -> None:
    if reason := postgres_cluster.missing():
        (pytest.fail if os.environ.get("RATCHET_REQUIRE_ALL_TESTS") else pytest.skip)(reason)
    with postgres_cluster.postgres_cluster(durable=False) as cluster:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*command, *(str(HERE / module) for module in MODULES)],
            env={**os.environ, "RATCHET_DATABASE": cluster.url("postgres")},
            cwd=HERE.parent.parent,
            timeout=900,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    assert run.returncode == 0, run.stdout[-6000:]
