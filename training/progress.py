"""Progress of a run at work: from the child's progress.jsonl into the database, with the heartbeat.

The file is the trainer's and may hold anything; the table holds finite numbers under numbered lines.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

from django.db import transaction

from training.leases import Lease
from training.models import Metric
from training.results import storable
from training.rlhf.run_dir import ProgressLine

log = logging.getLogger(__name__)


class ProgressTail:
    """New whole lines of progress.jsonl. Reads each byte once; a line that is no progress is passed over."""

    def __init__(self, path: Path, *, after: int) -> None:
        self._path = path
        self._offset = 0
        self.seq = after

    def read(self) -> list[ProgressLine]:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content.rfind(b"\n") + 1  # the rest is still being written
        self._offset += whole
        lines = []
        for raw in content[:whole].splitlines():
            line = parse_progress(raw)
            if line is None:
                log.warning("%s: a line that is no progress was passed over: %.80r", self._path, raw)
            elif line["seq"] > self.seq:
                self.seq = line["seq"]
                lines.append(line)
        return lines


def parse_progress(raw: bytes) -> ProgressLine | None:
    """A line that can be stored, without values that are no finite numbers; None when it is no progress."""
    try:
        line = json.loads(raw)
        values = {
            storable(str(name)): value
            for name, value in line["values"].items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        parsed = ProgressLine(
            seq=int(line["seq"]),
            time=float(line["time"]),
            step=int(line["step"]),
            total_steps=int(line["total_steps"]),
            message=storable(str(line["message"]).replace("\0", "")),
            values=values,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    fits = all(0 <= parsed[name] < 2**31 for name in ("seq", "step", "total_steps"))
    return parsed if fits else None


def store_progress(lease: Lease, lines: list[ProgressLine], **values: Any) -> None:
    """Store lines together with a heartbeat. Raises LeaseLost, storing nothing."""
    if lines:
        last = lines[-1]
        values |= {"step": last["step"], "total_steps": last["total_steps"], "last_seq": last["seq"]}
        messages = [line["message"] for line in lines if line["message"]]
        if messages:
            values["message"] = messages[-1]
    with transaction.atomic():
        lease.renew(**values)
        Metric.objects.bulk_create(
            [
                Metric(run_id=lease.run_id, seq=line["seq"], step=line["step"], values=line["values"])
                for line in lines
                if line["values"]
            ],
            ignore_conflicts=True,
        )


def forget_progress(lease: Lease) -> None:
    """Before a run begins anew in an empty folder, whose lines are numbered from 1 again."""
    with transaction.atomic():
        lease.renew(last_seq=0, checkpoint_step=0, step=0, total_steps=0)
        Metric.objects.filter(run=lease.run_id).delete()
