"""What a run took beside what was guessed, and what its page warns of."""

import doctest
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from tests.training.run_pages import manager, put_in, run
from training import endings, runs
from training.models import Metric, Run
from training.rlhf.run_dir import EXIT_NOT_BEGUN, RunDir, write_json
from training.views import costs

State = Run.State
__all__ = ["manager", "run"]  # fixtures
GUESS: dict[str, Any] = {
    "ok": True,
    "estimate": {"seconds": 20.0, "evaluation_seconds": 5.0, "memory_bytes": 8e8},
}
REHEARSAL = {
    "rehearsal/seconds": 0.5,
    "rehearsal/rows": 16.0,
    "rehearsal/tokens": 231.0,
    "rehearsal/peak_memory_bytes": 9e8,
    "rehearsal/estimated_train_seconds": 60.0,
}
REAL = {"seconds": 100.0, "peak_memory_bytes": 1e9, "from_step": 0, "rehearsal": REHEARSAL}


def page_of(manager: Client, run: Run) -> str:
    return " ".join(manager.get(run.get_absolute_url()).content.decode().split())


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(costs).failed == 0


def test_the_guess_stands_beside_the_first_step_and_what_it_really_took(manager: Client, run: Run) -> None:
    put_in(run, State.COMPLETE, preflight=GUESS, evaluation={"cost": REAL})
    page = page_of(manager, run)
    assert "What it took" in page
    assert "16 texts of up to 231 tokens, 0.5 s" in page
    for figure in ("20 s", "73 s", "2 min"):
        assert f'<td class="number">{figure}</td>' in page
    assert "It took 5.0 times the time that was guessed." in page
    assert "the memory that was guessed" not in page


def test_a_run_that_goes_on_is_not_compared_with_the_guess_of_the_whole(manager: Client, run: Run) -> None:
    put_in(run, State.COMPLETE, preflight=GUESS, evaluation={"cost": REAL | {"from_step": 50}})
    page = page_of(manager, run)
    assert "times the time that was guessed" not in page
    assert "that of the last attempt alone" in page


def test_a_busy_machine_is_named_beside_the_time_that_it_took(manager: Client, run: Run) -> None:
    preflight = {"ok": True, "estimate": GUESS["estimate"] | {"device": "CPU, 2 threads"}}
    put_in(run, State.COMPLETE, preflight=preflight, evaluation={"cost": REAL | {"cpu_seconds": 22.0}})
    assert "of that time this run computed for 22 s" in page_of(manager, run)
    put_in(run, State.COMPLETE, evaluation={"cost": REAL | {"cpu_seconds": 95.0}})
    assert "did other work" not in page_of(manager, run)


def test_while_it_runs_the_first_step_refines_the_guess(manager: Client, run: Run) -> None:
    put_in(run, State.RUNNING, preflight=GUESS)
    assert "What it takes" not in page_of(manager, run)
    Metric.objects.create(run=run, seq=3, step=0, values=REHEARSAL)
    page = page_of(manager, run)
    assert "What it takes" in page
    assert "73 s" in page
    assert "really" not in page


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"eos_rate_new": 0.6, "eos_rate_old": 0.97}, "unlearning to stop"),
        ({"eos_rate_new": 0.95, "eos_rate_old": 0.97}, ""),
    ],
)
def test_a_policy_that_unlearns_to_stop_is_told_of(
    evaluation: dict[str, Any], said: str, manager: Client, run: Run
) -> None:
    put_in(run, State.COMPLETE, evaluation=evaluation)
    page = page_of(manager, run)
    assert ("unlearning to stop" in page) == bool(said)


def test_a_reward_model_no_better_than_a_coin_is_told_of(manager: Client, run: Run) -> None:
    put_in(run, State.COMPLETE, method="reward_model", evaluation={"accuracy": 0.55, "pairs": 100})
    assert "which a coin may do as well" in page_of(manager, run)
    put_in(run, State.COMPLETE, evaluation={"accuracy": 0.71, "pairs": 100})
    assert "a coin" not in page_of(manager, run)


def test_what_was_said_aloud_while_it_trained_stays_on_its_page(manager: Client, run: Run) -> None:
    Metric.objects.create(run=run, seq=9, step=40, values={"alarms/chosen_fell": 21.0})
    put_in(run, State.COMPLETE)
    assert "became 21 nats less likely" in page_of(manager, run)


# --- a run that could not begin


def ending(code: int, run: Run, folder: Path) -> endings.Ending:
    return endings.of_run(code, run=run, run_dir=RunDir(folder), stopping=None)


def test_a_first_step_that_cannot_be_taken_refuses_the_run(run: Run, tmp_path: Path) -> None:
    error = {"what": "It does not fit.", "where": "batch_size 64", "do": "Take 32."}
    write_json(tmp_path / "error.json", error)
    found = ending(EXIT_NOT_BEGUN, run, tmp_path)
    assert (found.state, found.message) == (State.REFUSED, "It does not fit. (batch_size 64) Take 32.")
    # One that had begun keeps what it has.
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    write_json(tmp_path / "checkpoints" / "checkpoint-5" / "complete.json", {"step": 5})
    assert ending(EXIT_NOT_BEGUN, run, tmp_path).state == State.FAILED


def test_one_that_was_killed_in_its_first_step_is_not_tried_again(run: Run, tmp_path: Path) -> None:
    step = {"under_way": True, "rows": 64, "tokens": 900, "batch_size": 64}
    (tmp_path / "rehearsal.json").write_text(json.dumps(step))
    found = ending(-signal.SIGKILL, run, tmp_path)
    assert found.state == State.REFUSED
    assert "64 texts of up to 900 tokens" in found.message
    (tmp_path / "rehearsal.json").write_text(json.dumps(REHEARSAL))  # it had come to its end
    assert ending(-signal.SIGKILL, run, tmp_path).state == State.QUEUED


def test_what_a_first_step_refused_is_checked_again(run: Run, mia: User) -> None:
    put_in(run, State.REFUSED, preflight={"ok": True})
    assert runs.resume(run=run, by=mia).state == State.CHECKING
