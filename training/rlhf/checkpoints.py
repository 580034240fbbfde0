"""Checkpoints: written by TRL's trainer, usable once they hold `complete.json`, the last two kept.

A process may die at any moment, so a checkpoint counts only when all of it has reached the disk; whatever
was left half-written is removed at the next start.
"""

import errno
import json
import os
import shutil
from pathlib import Path

from training.rlhf.run_dir import RunDir, write_json

KEPT = 2

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# torch and safetensors write from C++ and Rust: what is left of the error number is its text.
_FULL_TEXTS = ("No space left", "File too large", "Disk quota", "(os error 28)", "(os error 27)",
               "(os error 122)", "PytorchStreamWriter failed", "file write failed")  # fmt: skip


class CheckpointNotSaved(Exception):
    """A checkpoint could not be written and was removed again; `kept` is the last good one, if any."""

    def __init__(self, *, step: int, kept: Path | None, disk_full: bool, folder: Path) -> None:
        super().__init__(f"the checkpoint of step {step} could not be saved")
        self.step = step
        self.kept = kept
        self.disk_full = disk_full
        self.folder = folder


def is_disk_full(error: BaseException) -> bool:
    """Does this error, or one that it came from, say that the disk took no more?"""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(text in str(seen) for text in _FULL_TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def remove_incomplete(run_dir: RunDir) -> list[str]:
    """Remove what an earlier attempt left half-written, and return the names."""
    torn = [p for p in run_dir.checkpoints.glob("checkpoint-*") if not (p / "complete.json").exists()]
    for path in torn:
        shutil.rmtree(path)
    return [path.name for path in torn]


def mark_complete(checkpoint: Path, *, step: int) -> None:
    """Wait until everything in the folder is on disk, then say so."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            sync(path)
    sync(checkpoint)
    write_json(checkpoint / "complete.json", {"step": step})
    sync(checkpoint)
    sync(checkpoint.parent)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def step_of(checkpoint: Path) -> int:
    step: int = json.loads((checkpoint / "complete.json").read_text(encoding="utf-8"))["step"]
    return step
