"""The worker's playground: children that hold policies in memory for people who chat with them.

On a GPU training goes first: while a run has the device nothing is loaded, and when one waits for it the
children finish the answer that they are at, within seconds, and leave. On a CPU both go on side by side.
A child that nobody has written to for a while leaves as well, and so does the one that was unused longest
where another policy is wanted and every seat is taken. No child outlives its worker (PDEATHSIG).
"""

import logging
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from training.launchers import Launcher, Server
from training.models import Run, ServedPolicy
from training.playground import servings
from training.prompted import parts_of

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.5  # between two looks at the database
GRACE_SECONDS = 15  # from "stop" to "kill": it finishes what it writes
LOAD_SECONDS = 900
SPARED_SECONDS = 20  # a policy that was used just now keeps its seat


class Seat:
    """One policy in memory."""

    def __init__(self, row: ServedPolicy, child: Server) -> None:
        self.row = row
        self.child = child
        self.address = ""
        self.since = self.renewed = time.monotonic()
        self.kill_at: float | None = None

    def stop(self) -> None:
        if self.kill_at is None:
            self.kill_at = time.monotonic() + GRACE_SECONDS
            self.child.stop()


class PlaygroundLane:
    def __init__(self, *, launcher: Launcher, claims_as: str, say: Callable[[str], None]) -> None:
        self.launcher = launcher
        self.claims_as = claims_as
        self.say = say
        self.seats: list[Seat] = []
        self._looked = float("-inf")

    @property
    def shares_device(self) -> bool:
        """Whether a run and a policy may be on the device together."""
        return self.launcher.device.startswith("cpu")

    def must_make_way(self) -> bool:
        """Whether a run waits for the device that we are on."""
        return bool(self.seats) and not self.shares_device and Run.objects.waiting_for_a_device().exists()

    def turn(self, *, may_load: bool, trusts_leases: bool = True) -> None:
        """One look at everything."""
        for seat in list(self.seats):
            self._look_at(seat)
        now = time.monotonic()
        if not may_load or now - self._looked < EVERY_SECONDS:
            return
        self._looked = now
        if len(self.seats) < settings.PLAYGROUND_SEATS:
            self._load(servings.claim(worker=self.claims_as, lost=trusts_leases))
        elif self.seats and servings.wanted_elsewhere():
            self._free_a_seat()

    def make_way(self) -> None:
        """Let the children finish and leave."""
        for seat in self.seats:
            self._close(seat)

    def abandon(self) -> None:
        """The worker leaves: nothing of ours stays."""
        for seat in self.seats:
            seat.child.kill()
        for seat in self.seats:
            servings.release(seat.row)
        self.seats = []

    def _load(self, row: ServedPolicy | None) -> None:
        if row is None:
            return
        policy, token = row.policy, secrets.token_urlsafe(32)
        folder = Path(settings.PLAYGROUND_DIR) / f"{row.pk}-{self.claims_as.rpartition(' ')[2]}"
        try:
            child = self.launcher.serve(
                policy.location, name=f"policy-{policy.pk}", folder=folder, host=settings.PLAYGROUND_HOST,
                token=token, parts=parts_of(policy),
            )  # fmt: skip
        except OSError as error:
            servings.release(
                row, failed=f"The policy could not be loaded: {error}. Put it right and ask again."
            )
            return
        row.token = token
        self.seats.append(Seat(row, child))
        self.say(f"playground: loading {policy}")

    def _look_at(self, seat: Seat) -> None:
        code = seat.child.poll()
        if code is not None:
            self._ended(seat, code)
            return
        now = time.monotonic()
        if seat.kill_at is not None:
            if now > seat.kill_at:
                seat.child.kill()
            return
        if not seat.address and now - seat.since > LOAD_SECONDS:
            seat.child.kill()
        if not seat.address and (address := seat.child.address()):
            seat.address = address
            self._write(seat, address=address, token=seat.row.token, message="In memory.")
            self.say(f"playground: {seat.row.policy} answers at {address}")
        if now - seat.renewed > min(settings.RUN_LEASE_SECONDS / 3, 2):
            self._renew(seat)

    def _renew(self, seat: Seat) -> None:
        seat.child.trim_logs()
        if self._write(seat, leased_until=servings.lease_end()):
            seat.renewed = time.monotonic()
            seat.row.refresh_from_db(fields=["wanted_until", "used_at"])
            if seat.row.wanted_until < timezone.now():
                self.say(f"playground: nobody writes to {seat.row.policy} any more")
                self._close(seat, is_wanted=False)

    def _write(self, seat: Seat, **values: object) -> bool:
        held = servings.write(seat.row, **values)
        if not held:  # another worker took us for dead, or the policy is gone
            seat.child.kill()
        return held

    def _close(self, seat: Seat, *, is_wanted: bool = True) -> None:
        """From now on nobody is sent there; the row is free for others at once."""
        if seat.kill_at is None:
            servings.release(seat.row, is_wanted=is_wanted)
            seat.stop()

    def _free_a_seat(self) -> None:
        unused = [seat for seat in self.seats if seat.kill_at is None and seat.address]
        if len(unused) < len(self.seats):  # one is on its way out, or in
            return
        longest = min(unused, key=lambda seat: seat.row.used_at)
        if timezone.now() - longest.row.used_at > timedelta(seconds=SPARED_SECONDS):
            self._close(longest, is_wanted=False)

    def _ended(self, seat: Seat, code: int) -> None:
        self.seats.remove(seat)
        if seat.kill_at is not None:
            return
        printed = " ".join(seat.child.stderr_tail().splitlines()[-2:])[-1000:]
        if code == 4:  # it refused, in words
            why = printed
        else:
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            why = f"The process that held the policy ended {how}. {printed} Ask again to load it once more."
        log.warning("playground: %s: %s", seat.row.policy, why)
        servings.release(seat.row, failed=why)
