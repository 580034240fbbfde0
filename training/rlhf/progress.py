"""What a run tells while it works, and how it learns that it should stop.

Everything goes into progress.jsonl with TRL's metric names, so that a page draws the same curves as a script.
A stop is asked for by SIGTERM or SIGINT. What is worth saving (training, sampling) looks at `stop_requested`
between two steps; in between, where nothing is lost, the signal ends the process at once.
"""

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from training.rlhf.run_dir import EXIT_CANCELLED, ProgressWriter


class Cancelled(Exception):
    """The run was told to stop; what was done so far is on disk."""


class _Stop:
    requested = False
    saving = False  # something is under way that is worth finishing


def stop_requested() -> bool:
    return _Stop.requested


def raise_if_stopped() -> None:
    """For loops whose work so far is on disk, or is not worth keeping."""
    if _Stop.requested:
        raise Cancelled


@contextmanager
def finishing_before_stop() -> Iterator[None]:
    """In this block a stop waits: the block looks at `stop_requested`, saves and leaves by itself."""
    _Stop.saving = True
    try:
        yield
    finally:
        _Stop.saving = False


def listen_for_stop() -> None:
    """Take SIGTERM and SIGINT as a wish to stop. Call from the main thread."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        _Stop.requested = True
        if not _Stop.saving:
            os._exit(EXIT_CANCELLED)  # importing torch or loading weights hears nothing else for seconds

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def report(progress: ProgressWriter, values: dict[str, Any], *, message: str = "") -> None:
    """Write the values that are finite numbers: JSON knows no others."""
    numbers = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    progress.write(message, numbers)
