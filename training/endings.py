"""What the end of a child means for its run: the next state, and words for people. Writes nothing."""

import errno
import json
import os
import shutil
import signal
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from training.models import Run
from training.results import ResultsRefused, read_json, storable
from training.rlhf.run_dir import (
    EXIT_CANCELLED,
    EXIT_COMPLETE,
    EXIT_NOT_BEGUN,
    EXIT_REFUSED,
    RunDir,
    RunError,
)

State = Run.State
MAX_FRUITLESS = 3  # attempts in a row that died without a new checkpoint
FULL_BELOW = 16 * 2**20  # bytes free in the run folder: hardly a checkpoint, or the words why, fits
TIGHT_BELOW = 2**30
NO_SPACE = ("No space left on device", "Disk quota exceeded")
NOT_WRITTEN = ("unexpected pos", "inline_container")  # how torch says that a file was cut short
OF_THE_MACHINE = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)  # no fault of the folder


class Stop(Enum):
    """Why a child was told to stop."""

    CANCEL = auto()  # somebody cancelled the run
    RELEASE = auto()  # the worker stops: another one goes on


@dataclass(frozen=True)
class Ending:
    state: str
    message: str
    values: dict[str, Any] = field(default_factory=dict)


def of_run(code: int, *, run: Run, run_dir: RunDir, stopping: Stop | None, printed: str = "") -> Ending:
    """A trainer that ended without a result. `printed`: the end of its standard error."""
    if stopping is Stop.CANCEL:
        return Ending(State.CANCELLED, f"Cancelled. {goes_on_from(run_dir)}", {"cancel_asked": False})
    if stopping is Stop.RELEASE:
        return Ending(State.QUEUED, f"Its worker stopped. {goes_on_from(run_dir)}")
    explained = error_of(run_dir)
    if code == EXIT_NOT_BEGUN and run_dir.last_checkpoint() is None:  # as if the check had found it
        return Ending(State.REFUSED, explained or "A step on the longest batch cannot be taken.")
    if code == EXIT_REFUSED or explained:  # it knows what is wrong: the same again would not help
        return Ending(State.FAILED, explained or "It refused its input.")
    return _died(code, run, run_dir, printed)


def _died(code: int, run: Run, run_dir: RunDir, printed: str) -> Ending:
    """It ended without a word. Once more from the last checkpoint, but not for ever."""
    why = how_it_ended(code)
    if is_disk_full(run_dir.path, printed):  # which may be why it could not say a word
        return Ending(State.FAILED, f"{disk_full(run_dir.path)} {goes_on_from(run_dir)}")
    if code == -signal.SIGKILL and (step := step_under_way(run_dir)):
        return Ending(State.REFUSED if run_dir.last_checkpoint() is None else State.FAILED, step)
    fruitless = run.fruitless_attempts + 1
    counted = {"fruitless_attempts": fruitless}
    if fruitless < MAX_FRUITLESS:
        return Ending(State.QUEUED, f"Attempt {run.attempt}: {why} {goes_on_from(run_dir)}", counted)
    return Ending(
        State.FAILED,
        f"{why} That was attempt {fruitless} in a row without a new checkpoint. {goes_on_from(run_dir)}",
        counted,
    )


def step_under_way(run_dir: RunDir) -> str:
    """Words for a child that was killed during its step on the longest batch; empty when it was not.

    On a CPU nothing refuses memory that is not there: the system kills who takes it.
    """
    try:
        step = json.loads(run_dir.rehearsal.read_text(encoding="utf-8"))
        if not step["under_way"]:
            return ""
        return (
            f"It was killed while it tried one step on the longest batch ({step['rows']} texts of up to "
            f"{step['tokens']} tokens): most likely the machine ran out of memory. Lower batch_size "
            f"({step['batch_size']}) and raise gradient_accumulation by the same factor, lower max_length, "
            "turn gradient_checkpointing on, or tune by LoRA or QLoRA."
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def of_check(code: int, *, run: Run, run_dir: RunDir, stopping: Stop | None, printed: str = "") -> Ending:
    """A preflight that ended. `printed`: the end of its standard error."""
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
        if is_disk_full(run_dir.path, printed):
            return Ending(State.FAILED, disk_full(run_dir.path))
        return Ending(State.FAILED, f"The check did not come to its end. {how_it_ended(code)}")
    told = {"preflight": report}
    if code != EXIT_COMPLETE or not report.get("ok"):
        return Ending(State.REFUSED, explained or refusal(report), told)
    if run.start_when_ready:
        return Ending(State.QUEUED, "Checked. Waiting for a device.", told)
    return Ending(State.READY, "Checked: ready to start.", told)


def of_fault(error: Exception, *, folder: Path) -> str:
    """Words for an error that neither the trainer nor its data explain.

    >>> of_fault(OSError(errno.EROFS, "Read-only file system"), folder=Path("/runs/7"))
    'The run folder /runs/7 cannot be used: Read-only file system. Put it right and resume.'
    >>> of_fault(KeyError("seed"), folder=Path("/runs/7"))
    "KeyError: 'seed' (/runs/7) This should not happen; the log has the trace. Resume it to try again."
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(folder)
    if isinstance(error, OSError) and _is_of_the_folder(error, folder):
        return f"The run folder {folder} cannot be used: {error.strerror}. Put it right and resume."
    return storable(
        f"{type(error).__name__}: {error} ({folder}) This should not happen; the log has the trace. "
        "Resume it to try again."
    )


def _is_of_the_folder(error: OSError, folder: Path) -> bool:
    if not error.strerror or error.errno in OF_THE_MACHINE:
        return False
    named = error.filename
    return not isinstance(named, str | bytes) or Path(os.fsdecode(named)).is_relative_to(folder.parent)


def is_disk_full(folder: Path, printed: str) -> bool:
    """By what the file system says, and by what the child printed before it died."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return False
    torch_was_cut_short = any(words in printed for words in NOT_WRITTEN) and free < TIGHT_BELOW
    return free < FULL_BELOW or torch_was_cut_short or any(words in printed for words in NO_SPACE)


def disk_full(folder: Path) -> str:
    return f"The disk is full. ({folder}) Free space and resume."


def refusal(report: dict[str, Any]) -> str:
    """What a preflight found, in one paragraph."""
    errors = [in_words(error) for error in report.get("errors") or []]
    return " ".join(errors) or "The check found that this run cannot work."


def error_of(run_dir: RunDir) -> str:
    """What error.json says, in one paragraph; empty without one."""
    return error_of_folder(run_dir.path)


def error_of_folder(folder: Path) -> str:
    """The same of any folder in which a child left words."""
    try:
        return in_words(json.loads((folder / "error.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def in_words(error: RunError) -> str:
    """
    >>> in_words({"what": "The disk is full.", "where": "/runs/7", "do": "Free space and resume."})
    'The disk is full. (/runs/7) Free space and resume.'
    """
    return storable(f"{error['what']} ({error['where']}) {error['do']}".replace("\0", ""))


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
