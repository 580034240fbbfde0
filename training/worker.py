"""The training worker: takes runs up, supervises their children, and hands them on when it is told to stop.

Two lanes in one process: the device lane trains and samples, one run at a time; the check lane runs
preflights and holds no device. Every method does one unit and says whether there is more; the loop around
them is `serve`. Any number of workers may share a database and the run folders.
"""

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable

from django.conf import settings
from django.db import connection
from django.db.models.functions import Now

from training import gate, leases, runs, sweeps
from training.endings import Stop
from training.launchers import Launcher
from training.leases import NO_ANSWER, LeaseLost
from training.leaving import hub
from training.leaving.lane import LeavingLane
from training.models import Run, Worker
from training.playground.lane import PlaygroundLane
from training.supervision import Supervision

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
SWEEP_SECONDS = 20
PROPOSE_SECONDS = 1


class TrainingWorker:
    def __init__(self, *, launcher: Launcher, name: str = "", say: Callable[[str], None] = log.info) -> None:
        self.launcher = launcher
        self.name = (name or f"{socket.gethostname()} {launcher.device}")[:80]
        # Two processes of one name must not take each other's leases for their own.
        self.claims_as = f"{self.name} {uuid.uuid4().hex[:8]}"
        self.say = say
        self.device_lane: Supervision | None = None
        self.check_lane: Supervision | None = None
        self.leaving = LeavingLane(launcher=launcher, claims_as=self.claims_as, say=say)
        self.playground = PlaygroundLane(launcher=launcher, claims_as=self.claims_as, say=say)
        self._stops_asked = 0
        self._is_batch = False
        self._seen = self._swept = self._proposed = float("-inf")
        self._sweeps_go_on = False
        self._unseen_since: float | None = None  # since then we have tried
        self._signed_on = False
        self._trusts_leases_from = float("-inf")
        self._has_left = threading.Event()

    # --- the loop -------------------------------------------------------------------------------------------

    def serve(self, *, batch: bool = False) -> None:
        """Work until told to stop; in a batch, until nothing is left to do."""
        self._is_batch = batch
        self.say(f"worker {self.name} waits for runs")
        self.launcher.prepare()
        # A call to the database may hang: then nobody but this thread sees a lease run out.
        threading.Thread(target=self._watch, daemon=True).start()
        with leases.frozen_transactions_end():
            try:
                while True:
                    busy = self.turn()
                    if not busy and (batch or self.is_stopping):
                        break
                    time.sleep(TICK_SECONDS)
            finally:
                self._leave()

    def turn(self) -> bool:
        """One look at everything; False when there was nothing to do."""
        try:
            self.be_seen()
            self.sweep()
            self.propose()
            checking = self.check()
            training = self.train()
            serving = self.serve_people()
            return serving or training or checking or (self._sweeps_go_on and not self.is_stopping)
        except NO_ANSWER:
            # The database is away or busy. Children work on; the lease's own clock stops them in time.
            log.warning("the database did not answer", exc_info=True)
            connection.close()
            self._mind_the_clock()
            return self._stops_asked < 2

    @property
    def is_stopping(self) -> bool:
        return self._stops_asked > 0

    def ask_stop(self) -> None:
        """First: save, stop, hand the run on. Again: now. Safe in a signal handler."""
        self._stops_asked += 1

    # --- units ----------------------------------------------------------------------------------------------

    def be_seen(self) -> None:
        lease, now = settings.RUN_LEASE_SECONDS, time.monotonic()
        if now - self._seen <= lease / 2:
            return
        self._unseen_since = self._unseen_since or now
        if now - self._seen > 2 * lease:  # the first time, or after a pause in which the name was free
            self._sign_on()
        Worker.objects.update_or_create(
            name=self.name,
            defaults={"device": self.launcher.device, "hub": hub.reached(), "seen_at": Now()},
        )
        self._seen = time.monotonic()
        if self._seen - self._unseen_since > lease / 6:
            # While we could not write, others could not renew: they get the time to do so first.
            self._trusts_leases_from = self._seen + lease / 3
        self._unseen_since = None

    def _sign_on(self) -> None:
        """Take a name that no worker alive has: two on one device must not remove each other's row."""
        for name in (self.name, *(f"{self.name} {number}" for number in range(2, 1000))):
            Worker.objects.filter(name=name, seen_at__lt=runs.oldest_alive()).delete()
            now = {"device": self.launcher.device, "hub": hub.reached(), "seen_at": Now()}
            if Worker.objects.get_or_create(name=name, defaults=now)[1]:
                self.name, self._signed_on = name, True
                return

    @property
    def trusts_leases(self) -> bool:
        """Whether a lease that ran out means that its worker is gone."""
        return time.monotonic() > self._trusts_leases_from

    def sweep(self) -> None:
        """Do what a lost signal would have done."""
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            try:
                runs.queue_missing_sampling()
                runs.cancel_unwanted_sampling()
                gate.evaluate_missing_gates()
            except NO_ANSWER:
                raise
            except Exception:  # one odd round must not keep every run from its worker
                log.exception("rounds without sampling or gate could not be looked after")

    def propose(self) -> None:
        """Let sweeps go on: the next run of a Bayesian one, the end of one that has no more to try."""
        if time.monotonic() - self._proposed > PROPOSE_SECONDS and not self.is_stopping:
            self._proposed = time.monotonic()
            self._sweeps_go_on = False
            try:
                self._sweeps_go_on = sweeps.advance_all() > 0
            except NO_ANSWER:
                raise
            except Exception:  # one odd sweep must not keep every run from its worker
                log.exception("sweeps could not be looked after")

    def train(self) -> bool:
        """One unit of the device lane; False when it has nothing to do."""
        if self.device_lane is None and not self.is_stopping:
            if self.playground.must_make_way():
                self.playground.make_way()
                return True
            run = leases.claim_run(
                worker=self.claims_as, device=self.launcher.device, lost=self.trusts_leases
            )
            self.device_lane = self._take(run)
        if self.device_lane is None:
            return False
        self.device_lane = self._advance(self.device_lane)
        return True

    def check(self) -> bool:
        """One unit of the check lane; False when it has nothing to do."""
        if self.check_lane is None and not self.is_stopping:
            run = leases.claim_check(worker=self.claims_as, lost=self.trusts_leases)
            self.check_lane = self._take(run)
        if self.check_lane is None:
            return False
        self.check_lane = self._advance(self.check_lane)
        return True

    def serve_people(self) -> bool:
        """One unit of the playground and of what leaves; True while something leaves.

        The playground gives way to training, and neither keeps a worker from its end.
        """
        try:
            is_free = self.device_lane is None or self.playground.shares_device
            may_load = is_free and not self._is_batch and not self.is_stopping
            self.playground.turn(may_load=may_load, trusts_leases=self.trusts_leases)
            leaving = self.leaving.turn(may_begin=not self.is_stopping, trusts_leases=self.trusts_leases)
            return leaving and not self.is_stopping
        except NO_ANSWER:
            raise
        except Exception:  # a fault of ours here must take no run away
            log.exception("the playground or what leaves could not be looked after")
            return False

    def _take(self, run: Run | None) -> Supervision | None:
        if run is None:
            return None
        self.say(f"{run}: {run.get_state_display().lower()}, attempt {run.attempt}")
        return Supervision(run, self.launcher)

    def _advance(self, lane: Supervision) -> Supervision | None:
        """Let a supervised run go one step; None when it is out of our hands."""
        if self.is_stopping:
            lane.stop(Stop.RELEASE)
            if self._stops_asked > 1 or lane.is_check:  # a check is quickly done again
                lane.kill()
        try:
            if lane.step():
                return lane
        except LeaseLost as lost:
            self.say(f"{lane.run}: given up, {lost}")
            return None
        self._tell(lane.run)
        return None

    def _tell(self, run: Run) -> None:
        now = Run.objects.filter(pk=run.pk).first()
        if now is not None:
            self.say(f"{now}: {now.get_state_display().lower()}. {now.message}")

    def _watch(self) -> None:
        while not self._has_left.wait(TICK_SECONDS):
            self._mind_the_clock()

    def _mind_the_clock(self) -> None:
        for lane in (self.device_lane, self.check_lane):
            if lane is not None:
                lane.mind_the_clock()

    def _leave(self) -> None:
        """Nothing of ours stays: children end with us, pages see that we are gone."""
        self._has_left.set()
        for lane in (self.device_lane, self.check_lane):
            if lane is not None:
                lane.abandon()
        self.launcher.close()
        try:
            self.leaving.abandon()
            self.playground.abandon()
            if self._signed_on:
                Worker.objects.filter(name=self.name).delete()
        except NO_ANSWER:
            log.warning("the database did not answer: pages see the worker for a while", exc_info=True)
        self.say(f"worker {self.name} has stopped")
