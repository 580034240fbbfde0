"""What a run really took, beside what was guessed: into result.json and evaluation.json once it is over."""

import json
import time
from typing import Any, TypedDict

from training.rlhf.checks import memory
from training.rlhf.run_dir import RunDir, write_json


class Cost(TypedDict, total=False):
    """Of the attempt that ended the run. `from_step` above 0: an earlier attempt did a part of it."""

    seconds: float  # all of it, loading and evaluation included
    cpu_seconds: (
        float  # of all its threads: on a machine that does other things, how much of `seconds` it had
    )
    train_seconds: float
    evaluation_seconds: float
    peak_memory_bytes: int  # on a GPU what was allocated there, else of the process in main memory
    from_step: int
    rehearsal: dict[str, float]  # the step on the longest batch (training.rlhf.checks.rehearsal)


class Meter:
    """Begun with a run."""

    def __init__(self, run_dir: RunDir) -> None:
        memory.begin()
        self.run_dir = run_dir
        self.started, self.cpu = time.monotonic(), time.process_time()
        last = run_dir.last_checkpoint()
        self.from_step = int(last.name.rpartition("-")[2]) if last else 0

    def read(self, *, train_seconds: float, evaluation_seconds: float) -> Cost:
        found = Cost(
            seconds=round(time.monotonic() - self.started, 2),
            cpu_seconds=round(time.process_time() - self.cpu, 2),
            train_seconds=round(train_seconds, 2),
            evaluation_seconds=round(evaluation_seconds, 2),
            peak_memory_bytes=memory.highest_bytes(),
            from_step=self.from_step,
        )
        rehearsal = _json(self.run_dir.rehearsal)
        return found | Cost(rehearsal=rehearsal) if rehearsal else found

    def note(self, cost: Cost) -> None:
        """Put it into evaluation.json, which is what comes home."""
        write_json(self.run_dir.evaluation, _json(self.run_dir.evaluation) | {"cost": cost})


def _json(path: Any) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
