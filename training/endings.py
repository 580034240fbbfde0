"""What the end of a child means for its run: the next state, and words for people. Writes nothing."""

import json
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from training.models import Run
from training.results import ResultsRefused, read_json
from training.rlhf.run_dir import EXIT_CANCELLED, EXIT_COMPLETE, EXIT_REFUSED, RunDir, RunError

State = Run.State
MAX_FRUITLESS = 3  # attempts in a row that died without a new checkpoint


class Stop(Enum):
    """Why a child was told to stop."""

    CANCEL = auto()  # somebody cancelled the run
    RELEASE = auto()  # the worker stops: another one goes on


@dataclass(frozen=True)
class Ending:
    state: str
    message: str
    values: dict[str, Any] = field(default_factory=dict)


def of_run(code: int, *, run: Run, run_dir: RunDir, stopping: Stop | None) -> Ending:
    """A trainer that ended without a result."""
    if stopping is Stop.CANCEL:
        return Ending(State.CANCELLED, f"Cancelled. {goes_on_from(run_dir)}", {"cancel_asked": False})
    if stopping is Stop.RELEASE:
        return Ending(State.QUEUED, f"Its worker stopped. {goes_on_from(run_dir)}")
    explained = error_of(run_dir)
    if code == EXIT_REFUSED or explained:  # it knows what is wrong: the same again would not help
        return Ending(State.FAILED, explained or "It refused its input.")
    return _died(code, run, run_dir)


def _died(code: int, run: Run, run_dir: RunDir) -> Ending:
    """It ended without a word. Once more from the last checkpoint, but not for ever."""
    why = how_it_ended(code)
    fruitless = run.fruitless_attempts + 1
    counted = {"fruitless_attempts": fruitless}
    if fruitless < MAX_FRUITLESS:
        return Ending(State.QUEUED, f"Attempt {run.attempt}: {why} {goes_on_from(run_dir)}", counted)
    return Ending(
        State.FAILED,
        f"{why} That was attempt {fruitless} in a row without a new checkpoint. {goes_on_from(run_dir)}",
        counted,
    )


def of_check(code: int, *, run: Run, run_dir: RunDir, stopping: Stop | None) -> Ending:
    """A preflight that ended."""
    if stopping is Stop.RELEASE:
        return Ending(State.CHECKING, "Waiting for a worker to check it.")
    try:
        report = read_json(run_dir.preflight) if run_dir.preflight.exists() else None
    except ResultsRefused as error:
        return Ending(State.FAILED, str(error))
    explained = error_of(run_dir)
    if not isinstance(report, dict):
        if code == EXIT_REFUSED or explained:
            return Ending(State.REFUSED, explained or "The check refused the run.")
        return Ending(State.FAILED, f"The check did not come to its end. {how_it_ended(code)}")
    told = {"preflight": report}
    if code != EXIT_COMPLETE or not report.get("ok"):
        return Ending(State.REFUSED, explained or refusal(report), told)
    if run.start_when_ready:
        return Ending(State.QUEUED, "Checked. Waiting for a device.", told)
    return Ending(State.READY, "Checked: ready to start.", told)


def refusal(report: dict[str, Any]) -> str:
    """What a preflight found, in one paragraph."""
    errors = [in_words(error) for error in report.get("errors") or []]
    return " ".join(errors) or "The check found that this run cannot work."


def error_of(run_dir: RunDir) -> str:
    """What error.json says, in one paragraph; empty without one."""
    try:
        return in_words(json.loads(run_dir.error.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def in_words(error: RunError) -> str:
    """
    >>> in_words({"what": "The disk is full.", "where": "/runs/7", "do": "Free space and resume."})
    'The disk is full. (/runs/7) Free space and resume.'
    """
    return f"{error['what']} ({error['where']}) {error['do']}".replace("\0", "")


def goes_on_from(run_dir: RunDir) -> str:
    checkpoint = run_dir.last_checkpoint()
    if checkpoint is None:
        return "No checkpoint was saved yet: it begins anew."
    return f"It goes on from step {step_of(checkpoint)}."


def step_of(checkpoint: Path) -> int:
    """
    >>> step_of(Path("checkpoints/checkpoint-150"))
    150
    """
    return int(checkpoint.name.rpartition("-")[2])


def how_it_ended(code: int) -> str:
    """For people.

    >>> how_it_ended(-9)
    'It was killed by signal 9 (often: the machine ran out of memory).'
    """
    if code == -9:
        return "It was killed by signal 9 (often: the machine ran out of memory)."
    if code < 0:
        return f"It was killed by signal {-code}."
    if code == EXIT_COMPLETE:
        return "It ended without a result.json."
    if code == EXIT_CANCELLED:
        return "It was stopped from outside."
    return f"It ended with status {code}."
