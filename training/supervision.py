"""One child under supervision, from its start to what its end means for the run.

`step` does one unit and never waits; the worker's loop calls it a few times a second. Two rules keep two
children of one run apart: every write repeats the lease (training.leases), and a worker that could not
renew its lease in time kills its child by its own clock, without asking anybody.
"""

import logging
import time
import traceback
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError

from training import endings
from training.endings import Stop
from training.launchers import Child, Launcher
from training.leases import Lease, LeaseLost
from training.models import Run
from training.progress import ProgressTail, store_progress
from training.results import ResultsRefused, import_results
from training.rlhf.run_dir import EXIT_COMPLETE, EXIT_LOCKED, ProgressLine, RunDir
from training.run_folders import FolderNotWritten, write_run_folder

log = logging.getLogger(__name__)

State = Run.State
GRACE_SECONDS = 30  # from "stop" to "kill"; a checkpoint is saved in between
TOLD_WHY = (State.FAILED, State.REFUSED, State.QUEUED)  # what the child printed is kept
LOCK_PATIENCE = 2  # leases to wait for a process in the folder that is not ours to end


class Supervision:
    """A claimed run and its child. Raises LeaseLost out of `step` when somebody else decided."""

    def __init__(self, run: Run, launcher: Launcher) -> None:
        self.run = run
        self.is_check = run.state == State.CHECKING
        self.lease = Lease(run_id=run.pk, worker=run.worker, attempt=run.attempt, state=run.state)
        self.dir = RunDir(run.folder)
        self.child: Child | None = None
        self.stopping: Stop | None = None
        self._launcher = launcher
        self._tail = ProgressTail(self.dir.progress, after=run.last_seq)
        self._unstored: list[ProgressLine] = []
        self._renewed = time.monotonic()
        self._kill_at: float | None = None
        self._locked_since: float | None = None

    # --- one unit -------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Look once, act once; False when the run is out of our hands."""
        try:
            return self._step()
        except LeaseLost:
            self.abandon()
            raise

    def _step(self) -> bool:
        self._check_own_clock()
        if self.child is None:
            return self._begin()
        code = self.child.poll()
        self._heartbeat(last=code is not None)
        if code is not None:
            return self._ended(code)
        self._listen()
        return True

    def stop(self, why: Stop) -> None:
        """Ask the child to save and stop; after a while it is killed."""
        if self.stopping is None:
            self.stopping = why
            self._kill_at = time.monotonic() + GRACE_SECONDS
            if self.child is not None:
                self.child.stop()

    def kill(self) -> None:
        """End the child now; the next `step` says what became of the run."""
        if self.child is not None:
            self.child.kill()

    def abandon(self) -> None:
        """The run is somebody else's: leave nothing behind, write nothing."""
        if self.child is not None:
            self.child.kill()

    # --- while it works -------------------------------------------------------------------------------------

    def _check_own_clock(self) -> None:
        # After a pause (SIGSTOP, a sleeping laptop, a database away) another worker may be at work already.
        if time.monotonic() - self._renewed > settings.RUN_LEASE_SECONDS:
            raise LeaseLost(f"run {self.run.pk}: the lease ran out before it could be renewed")

    def _begin(self) -> bool:
        if self.stopping is Stop.RELEASE:
            return self._end(State.CHECKING if self.is_check else State.QUEUED, "Waiting for a worker.")
        if not self.is_check and self._cancel_asked():
            return self._end(State.CANCELLED, "Cancelled before this attempt began.")
        try:
            write_run_folder(self.run)
        except FolderNotWritten as error:
            return self._end(State.FAILED, str(error))
        if not self._way_is_clear():
            return True
        if not self.is_check and self.dir.is_complete:
            return self._import()  # an earlier worker died between the end of its child and the import
        self.dir.error.unlink(missing_ok=True)
        if self.is_check:
            self.dir.preflight.unlink(missing_ok=True)
        self._renew(message="Checking data and model." if self.is_check else self._opening_words())
        self.child = self._launcher.start(self.dir.path, preflight=self.is_check)
        return True

    def _opening_words(self) -> str:
        checkpoint = self.dir.last_checkpoint()
        if checkpoint is None:
            return "Starting." if self.run.attempt == 1 else f"Starting, attempt {self.run.attempt}."
        return f"Going on from step {endings.step_of(checkpoint)}, attempt {self.run.attempt}."

    def _way_is_clear(self) -> bool:
        """Whether nothing works in the folder any more; a child of a lost worker is ended."""
        holder = self._launcher.evict(self.dir.path)
        if holder is None:
            self._locked_since = None
            return True
        now = time.monotonic()
        self._locked_since = self._locked_since or now
        if now - self._locked_since > LOCK_PATIENCE * settings.RUN_LEASE_SECONDS:
            self._end(
                State.FAILED,
                f"Process {holder} works in {self.dir.path} and is not ours. End it, then resume the run.",
            )
            raise LeaseLost(f"run {self.run.pk}: its folder is held by process {holder}")
        self._heartbeat(message=f"Waiting for process {holder}, which works in the run folder.")
        return False

    def _heartbeat(self, *, last: bool = False, **values: Any) -> None:
        """Store what is new, and renew the lease when a third of it has gone."""
        self._unstored += self._tail.read()
        due = time.monotonic() - self._renewed > settings.RUN_LEASE_SECONDS / 3
        if not (self._unstored or due or last):
            return
        if self.child is not None:
            self.child.trim_logs()
        if not self.is_check:
            values |= self._checkpoint()
        began = time.monotonic()
        store_progress(self.lease, self._unstored, **values)
        self._unstored = []
        self._renewed = began

    def _renew(self, **values: Any) -> None:
        began = time.monotonic()
        self.lease.renew(**values)
        self._renewed = began

    def _checkpoint(self) -> dict[str, int]:
        """A new checkpoint is progress: attempts that died before it are forgiven."""
        checkpoint = self.dir.last_checkpoint()
        step = endings.step_of(checkpoint) if checkpoint else 0
        if step <= self.run.checkpoint_step:
            return {}
        self.run.checkpoint_step = step
        self.run.fruitless_attempts = 0
        return {"checkpoint_step": step, "fruitless_attempts": 0}

    def _listen(self) -> None:
        """Notice a wish to cancel, a lost lease, and a child that does not obey."""
        if self._cancel_asked():
            self.stop(Stop.CANCEL)
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            log.warning(
                "run %s: the child did not stop within %s s and is killed", self.run.pk, GRACE_SECONDS
            )
            self.kill()

    def _cancel_asked(self) -> bool:
        asked = self.lease.rows().values_list("cancel_asked", flat=True).first()
        if asked is None:
            raise LeaseLost(f"run {self.run.pk} is no longer ours")
        return asked

    # --- its end --------------------------------------------------------------------------------------------

    def _ended(self, code: int) -> bool:
        if code == EXIT_LOCKED and self.stopping is None:
            self.child = None  # somebody was in the folder: clear the way, start again
            return True
        if code == EXIT_COMPLETE and self.dir.is_complete and not self.is_check:
            return self._import()
        judge = endings.of_check if self.is_check else endings.of_run
        ending = judge(code, run=self.run, run_dir=self.dir, stopping=self.stopping)
        return self._end(ending.state, ending.message, **ending.values)

    def _import(self) -> bool:
        try:
            import_results(self.lease)
        except (LeaseLost, OperationalError, InterfaceError):
            raise  # not ours any more; or the database is away, and the next step tries again
        except ResultsRefused as error:
            return self._end(State.FAILED, str(error))
        except Exception as error:  # a fault of ours must not take the worker down with every other run
            log.exception("run %s: its results could not be imported", self.run.pk)
            return self._end(
                State.FAILED,
                f"The run ended, but its results could not be taken in: {error} Resume it to try again.",
                stderr_tail=traceback.format_exc()[-8000:],
            )
        return False

    def _end(self, state: str, message: str, **values: Any) -> bool:
        if self.child is not None:
            values.setdefault("stderr_tail", self.child.stderr_tail() if state in TOLD_WHY else "")
        self.lease.end(state, message, **values)
        return False
