"""The whole turn of the ratchet, as `make demo --headless` runs it: real server, worker, children, pages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.training


def test_the_loop_turns_twice_and_its_books_balance(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "manage.py", "demo", "--headless", "--rounds", "2", "--labels", "60", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "RATCHET_SECRET_KEY"}
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "var"), "--port", "8900"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert [turn["round"] for turn in figures["rounds"]] == [1, 2]
    assert figures["labels_acknowledged"] == figures["labels_stored"] == figures["labels_exported"] > 60
    first, second = figures["rounds"]
    assert first["human_win_rate"] is None  # nothing was there to compare with
    assert 0 <= second["human_win_rate"] <= 1  # round 2 pitted the new policy against the starter
    for turn in figures["rounds"]:
        assert 0.5 < turn["win_rate_vs_starter"] <= 1  # it learnt what the raters like
        assert turn["kl"] > 0
        assert 0 <= turn["reward_accuracy"] <= 1
    assert (tmp_path / "var" / "secret_key").stat().st_mode & 0o777 == 0o600


def test_a_headless_loop_that_fails_says_so_by_its_exit_status(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "demo", "--headless", "--keep", str(tmp_path), "--port", "8950"],
        cwd=ROOT, env={**os.environ, "RATCHET_DATABASE": "postgresql://nobody@127.0.0.1:1/none"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "127.0.0.1" in done.stderr
