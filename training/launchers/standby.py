"""A child of this machine that stands by with everything imported (training.rlhf.standby), seen from outside.

`Standby` is the process. A preflight borrows it (`StandbyCheck`) and gives it back; a run takes it for good,
and is then a child like any other.
"""

import json
import os
import subprocess
from pathlib import Path

from django.conf import settings

from training.launchers.local_child import LocalChild
from training.rlhf.run_dir import Job


class Standby:
    def __init__(self, env: dict[str, str]) -> None:
        self.busy = False
        self.process = subprocess.Popen(
            [*settings.TRAINER_COMMAND, "--standby"],
            cwd=settings.BASE_DIR,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # if it cannot start, a child that starts with its run says why
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._jobs, self._answers = self.process.stdin, self.process.stdout
        os.set_blocking(self._answers.fileno(), False)

    @property
    def is_free(self) -> bool:
        return not self.busy and self.process.poll() is None

    def send(self, folder: Path, *, preflight: bool, stdout: Path, stderr: Path) -> bool:
        """Hand it a job; False when it has died meanwhile."""
        job = Job(folder=str(folder), preflight=preflight, stdout=str(stdout), stderr=str(stderr))
        try:
            self._jobs.write(json.dumps(job).encode() + b"\n")
            self._jobs.flush()
        except OSError:
            return False
        self.busy = True
        return True

    def answer(self) -> int | None:
        """The status of the preflight that it was doing; None while it is at it."""
        try:
            line = os.read(self._answers.fileno(), 64)
        except BlockingIOError:
            return None
        return int(line) if line.strip() else None


class StandbyCheck(LocalChild):
    """A preflight that a standby does. Its end is an answer, unless the process itself ends."""

    def __init__(self, standby: Standby, stderr: Path, stdout: Path) -> None:
        super().__init__(standby.process, stderr, stdout)
        self._standby = standby
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._standby.answer()
            if self._code is None:
                return super().poll()
            self._standby.busy = False
        return self._code

    def stop(self) -> None:
        if self._code is None:
            super().stop()

    def kill(self) -> None:
        if self._code is None:  # afterwards the process is not ours any more
            super().kill()
