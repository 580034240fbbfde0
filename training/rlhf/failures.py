"""What went wrong, in plain words: what, where, and what to do. Standard library only.

Whatever ends a run ends up here once, and from here in `error.json` and on the run's page.
"""

import json
import traceback
from pathlib import Path

from training.rlhf.checkpoints import CheckpointNotSaved, is_disk_full
from training.rlhf.config import ConfigError
from training.rlhf.run_dir import EXIT_CRASHED, EXIT_NOT_BEGUN, EXIT_REFUSED, RunDir, RunError

_OURS = Path(__file__).resolve().parent


class Refused(Exception):
    """The input is at fault; whoever gave it can put it right."""

    def __init__(self, what: str, where: str, do: str) -> None:
        super().__init__(f"{what} ({where}) {do}")
        self.what = what
        self.where = where
        self.do = do


class NotBegun(Refused):
    """The first step was tried and cannot be taken: nothing was trained, and nothing is to be resumed."""


class RenderError(ValueError):
    """The chat template refuses a conversation; the message says why."""


class Diverged(Exception):
    """The loss or the gradient is no longer a number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss at step {step} is not a number")
        self.step = step


class Collapsed(Exception):
    """An online method left its bounds at a step; `kept` is the last checkpoint from before, if any."""

    def __init__(self, *, step: int, reason: str, kept: Path | None) -> None:
        super().__init__(f"the policy collapsed at step {step}: {reason}")
        self.step = step
        self.reason = reason
        self.kept = kept


def explain(error: BaseException, *, run_dir: RunDir) -> tuple[RunError, int]:
    """The words for `error.json` and the exit code."""
    match error:
        case NotBegun():
            return RunError(what=error.what, where=error.where, do=error.do), EXIT_NOT_BEGUN
        case Refused():
            return RunError(what=error.what, where=error.where, do=error.do), EXIT_REFUSED
        case ConfigError():
            return RunError(
                what=str(error), where=str(run_dir.config), do="Correct the setting and start again."
            ), EXIT_REFUSED
        case json.JSONDecodeError():
            return RunError(
                what=f"A file is not JSON: {error}", where=str(run_dir.path), do="Write the file again."
            ), EXIT_REFUSED
        case RenderError():
            return RunError(
                what=str(error),
                where="the model's chat template",
                do="Choose a model whose template takes these turns, or leave such prompts out.",
            ), EXIT_REFUSED
        case CheckpointNotSaved():
            return _checkpoint(error), EXIT_CRASHED
        case Diverged():
            return RunError(
                what=f"The loss at step {error.step} is not a number any more.",
                where=f"step {error.step}",
                do="Start a new run with a lower learning rate, a longer warm-up, or without bf16.",
            ), EXIT_CRASHED
        case Collapsed():
            kept = f"{error.kept.name} is kept" if error.kept else "No checkpoint was saved before"
            return RunError(
                what=f"The policy collapsed: {error.reason}.",
                where=f"step {error.step}",
                do="Look at what the reward likes, and start a new run with a lower learning rate or a "
                f"higher KL coefficient. {kept}.",
            ), EXIT_CRASHED
        case ModuleNotFoundError():
            return RunError(
                what=f"The Python package {error.name} is missing.",
                where="this installation",
                do="Install the extra `training`: pip install 'ratchet[training]'.",
            ), EXIT_CRASHED
    if is_disk_full(error):
        return RunError(
            what=f"The disk is full: {error}",
            where=str(run_dir.path),
            do=f"Free space and resume the run. {_what_is_kept(run_dir.last_checkpoint())}",
        ), EXIT_CRASHED
    if is_out_of_memory(error):
        return RunError(
            what=f"The memory did not suffice. {str(error).partition(chr(10))[0]}".strip(),
            where=_place(error),
            do="Lower batch_size and raise gradient_accumulation by the same factor, lower max_length, "
            "use LoRA, or turn gradient checkpointing on.",
        ), EXIT_CRASHED
    return RunError(
        what=f"{type(error).__name__}: {error}",
        where=_place(error),
        do=f"This should not happen; the log has the whole trace. {_what_is_kept(run_dir.last_checkpoint())}",
    ), EXIT_CRASHED


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU or of the machine; torch's allocator for the CPU says it in words of its own."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def _checkpoint(error: CheckpointNotSaved) -> RunError:
    reason = "The disk is full" if error.disk_full else f"The disk could not be written ({error.__cause__})"
    return RunError(
        what=f"{reason}: the checkpoint of step {error.step} could not be saved and was removed.",
        where=str(error.folder),
        do=f"{'Free space' if error.disk_full else 'Put the disk right'} and resume the run. "
        f"{_what_is_kept(error.kept)}",
    )


def _what_is_kept(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "It begins anew: no checkpoint was saved yet."
    return f"It goes on from {checkpoint.name}."


def _place(error: BaseException) -> str:
    """The innermost line of ours that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(_OURS)]
    if not ours:
        return "outside training.rlhf"
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}, in {ours[-1].name}"
