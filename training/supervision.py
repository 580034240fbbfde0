"""One child under supervision, from its start to what its end means for the run.

`step` does one unit and never waits; the worker's loop calls it a few times a second. Every write repeats
the lease (training.leases). What keeps two children of one run apart when the lease runs out by our own
clock, which starts before the renewal is sent and so never runs out later than the database's:

- The database answers: one conditional renewal decides. While the row is still ours nobody was first, and
  the child works on; otherwise it is killed.
- SQLite does not answer: whoever keeps us from writing (a long import) keeps everybody from claiming. The
  child works on. When the lock is gone, either our renewal is first or another worker's claim; that worker
  is on this machine, and ends our child (`Launcher.evict`) before it starts its own.
- PostgreSQL does not answer: it may answer another worker, elsewhere. Our child has to be dead before the
  lease is over, so `mind_the_clock` kills it without asking anybody; the worker has a thread for it, since
  a call to the database may hang for minutes.

Under all of this lies the lock in the run folder, which the child itself holds.
"""

import logging
import time
import traceback
from typing import Any

from django.conf import settings

from training import endings
from training.endings import Stop
from training.launchers import Child, Launcher
from training.leases import NO_ANSWER, Lease, LeaseLost, others_may_claim_meanwhile
from training.models import Run
from training.progress import ProgressTail, forget_progress, store_progress
from training.results import ResultsRefused, import_results, storable
from training.rlhf.run_dir import EXIT_COMPLETE, EXIT_LOCKED, ProgressLine, RunDir
from training.run_folders import FolderNotWritten, is_written, write_run_folder

log = logging.getLogger(__name__)

State = Run.State
GRACE_SECONDS = 30  # from "stop" to "kill"; a checkpoint is saved in between
TOLD_WHY = (State.FAILED, State.REFUSED, State.QUEUED)  # what the child printed is kept
LOCK_PATIENCE = 2  # leases to wait for a process in the folder that is not ours to end
CHECK_SECONDS = 600  # a preflight that takes longer is not going to end


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
        self._check_ends_at: float | None = None
        self._others_may_claim = others_may_claim_meanwhile()
        self._ended_by_clock = False

    # --- one unit -------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Look once, act once; False when the run is out of our hands."""
        try:
            return self._step()
        except LeaseLost:
            self.abandon()
            raise
        except NO_ANSWER:
            raise  # the database is away or busy: the next step tries again
        except Exception as error:
            return self._break_off(error)

    def _break_off(self, error: Exception) -> bool:
        """End the run after a fault: it must not take the worker down, and every other run with it."""
        log.exception("run %s: a fault ended it", self.run.pk)
        self.abandon()
        message = endings.of_fault(error, folder=self.dir.path)
        try:
            return self._end(State.FAILED, message, stderr_tail=storable(traceback.format_exc()[-8000:]))
        except LeaseLost:
            raise
        except Exception as unwritten:  # left as it is, it is claimed again when the lease is over
            log.exception("run %s: its end could not be written", self.run.pk)
            raise LeaseLost(f"run {self.run.pk}: its end could not be written") from unwritten

    def _step(self) -> bool:
        self._check_own_clock()
        if self.child is None:
            return self._begin()
        code = self.child.poll()
        self._heartbeat(last=code is not None)
        if code is not None:
            return self._ended(code)
        if self._check_ends_at is not None and time.monotonic() > self._check_ends_at:
            return self._end_overlong_check()
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

    def mind_the_clock(self) -> None:
        """Kill the child when somebody else may have claimed the run; asks no database. From any thread."""
        child = self.child
        if self._others_may_claim and self._lease_ran_out() and child is not None and child.poll() is None:
            self._ended_by_clock = True
            child.kill()

    # --- while it works -------------------------------------------------------------------------------------

    def _check_own_clock(self) -> None:
        """After a pause (SIGSTOP, a database away or busy), go on only with a run that is still ours."""
        self.mind_the_clock()
        if self._ended_by_clock:
            raise LeaseLost(f"run {self.run.pk}: the lease ran out before it could be renewed")
        if self._lease_ran_out():
            self._renew()
            log.warning("run %s: its lease had run out, and nobody had taken it", self.run.pk)

    def _lease_ran_out(self) -> bool:
        return time.monotonic() - self._renewed > settings.RUN_LEASE_SECONDS

    def _begin(self) -> bool:
        if self.stopping is Stop.RELEASE:
            return self._end(State.CHECKING if self.is_check else State.QUEUED, "Waiting for a worker.")
        if not self.is_check and self._cancel_asked():
            return self._end(State.CANCELLED, "Cancelled before this attempt began.")
        if not is_written(self.run):
            self._begin_anew()
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
        self._check_ends_at = time.monotonic() + CHECK_SECONDS if self.is_check else None
        return True

    def _begin_anew(self) -> None:
        """A folder that vanished took its lines and checkpoints along: those of the new one count from 1."""
        if self.run.last_seq or self.run.checkpoint_step:
            forget_progress(self.lease)
            self.run.last_seq = self.run.checkpoint_step = 0
            self._tail = ProgressTail(self.dir.progress, after=0)

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
        printed = self.child.stderr_tail() if self.child is not None else ""
        judge = endings.of_check if self.is_check else endings.of_run
        ending = judge(code, run=self.run, run_dir=self.dir, stopping=self.stopping, printed=printed)
        return self._end(ending.state, ending.message, **ending.values)

    def _end_overlong_check(self) -> bool:
        self.kill()
        return self._end(
            State.FAILED,
            f"The check did not end within {CHECK_SECONDS // 60} minutes and was stopped. ({self.dir.path}) "
            "Look at what it printed last; resume the run to check it again.",
        )

    def _import(self) -> bool:
        try:
            import_results(self.lease)
        except (LeaseLost, *NO_ANSWER):
            raise  # not ours any more; or the database is away, and the next step tries again
        except ResultsRefused as error:
            return self._end(State.FAILED, str(error))
        except Exception as error:  # a fault of ours must not take the worker down with every other run
            log.exception("run %s: its results could not be imported", self.run.pk)
            return self._end(
                State.FAILED,
                storable(
                    f"The run ended, but its results could not be taken in: {error} Resume it to try again."
                ),
                stderr_tail=storable(traceback.format_exc()[-8000:]),
            )
        return False

    def _end(self, state: str, message: str, **values: Any) -> bool:
        if self.child is not None:
            values.setdefault("stderr_tail", self.child.stderr_tail() if state in TOLD_WHY else "")
        self.lease.end(state, message, **values)
        return False
