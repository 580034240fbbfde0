"""The worker's way out: one child at a time that writes a model in another form and pushes it.

It needs no device, so it goes on beside training. A child that died is tried again twice.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings

from training.endings import error_of_folder
from training.launchers import Child, Launcher
from training.leaving import departures, hub
from training.models import Departure
from training.rlhf.run_dir import EXIT_COMPLETE

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0  # between two looks at the database
SWEEP_SECONDS = 3600
MOST_ATTEMPTS = 3
State = Departure.State


class LeavingLane:
    def __init__(self, *, launcher: Launcher, claims_as: str, say: Callable[[str], None]) -> None:
        self.launcher = launcher
        self.claims_as = claims_as
        self.say = say
        self.row: Departure | None = None
        self.child: Child | None = None
        self._looked = self._renewed = self._swept = float("-inf")
        self._told: Any = None

    def turn(self, *, may_begin: bool, trusts_leases: bool = True) -> bool:
        """One unit; False when there is nothing to do."""
        if self.row is not None:
            self._follow(self.row)
            return True
        now = time.monotonic()
        if not may_begin or now - self._looked < EVERY_SECONDS:
            return False
        self._looked = now
        if now - self._swept > SWEEP_SECONDS:
            self._swept = now
            departures.remove_old_folders()
        row = departures.claim(worker=self.claims_as, pushes=bool(hub.token()), lost=trusts_leases)
        if row is None:
            return False
        self._begin(row)
        return True

    def abandon(self) -> None:
        """The worker leaves: another one begins anew."""
        if self.child is not None:
            self.child.kill()
        if self.row is not None:
            departures.end(self.row, State.WAITING, "Its worker stopped. Waiting for another one.")
        self.row = self.child = None

    def _begin(self, row: Departure) -> None:
        self.row, self._renewed, self._told = row, time.monotonic(), None
        self.say(f"{row}: {row.get_form_display().lower()}")
        if row.attempt > MOST_ATTEMPTS:
            self._end(State.FAILED, f"It died {MOST_ATTEMPTS} times. Look at the worker's log.")
            return
        try:
            self.child = self.launcher.leave(departures.write_job(row), token=hub.token() if row.repo else "")
        except Exception as error:  # one odd model must not take the worker down
            log.exception("%s could not begin", row)
            self._end(State.FAILED, f"It could not begin: {error}. Put it right and ask again.")

    def _follow(self, row: Departure) -> None:
        assert self.child is not None
        code = self.child.poll()
        if code is not None:
            self._ended(row, code)
            return
        state = _read(row, "state.json")
        due = time.monotonic() - self._renewed > min(settings.RUN_LEASE_SECONDS / 3, 2)
        if state == self._told and not due:
            return
        self._told, self._renewed = state, time.monotonic()
        told = {"percent": state["percent"], "message": state["message"]} if state else {}
        self.child.trim_logs()
        if not departures.write(row, leased_until=departures.lease_end(), **told):
            self.child.kill()  # another worker took us for dead, or the project is gone
            self.row = self.child = None

    def _ended(self, row: Departure, code: int) -> None:
        result = _read(row, "result.json")
        refused = error_of_folder(row.folder)
        assert self.child is not None
        if code == EXIT_COMPLETE and result is not None:
            done = f"Pushed to {row.repo}." if row.repo else "Written."
            self._end(State.COMPLETE, done, percent=100, url=str(result.get("url", ""))[:500])
        elif refused:
            self._end(State.FAILED, refused)
        elif row.attempt < MOST_ATTEMPTS:
            log.warning("%s ended with status %s: %s", row, code, self.child.stderr_tail())
            self._end(State.WAITING, f"Attempt {row.attempt} ended with status {code}; it is tried again.")
        else:
            said = self.child.stderr_tail()[-600:]
            self._end(State.FAILED, f"It ended with status {code}, {row.attempt} times. {said}")

    def _end(self, state: str, message: str, **values: Any) -> None:
        assert self.row is not None
        departures.end(self.row, state, message, **values)
        self.say(f"{self.row}: {message}")
        self.row = self.child = None


def _read(row: Departure, name: str) -> Any:
    try:
        return json.loads((row.folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
