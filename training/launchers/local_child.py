"""A process of this machine that works for a run: watched, stopped, and ended with all that it started."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

TAIL_BYTES = 8_000
MAX_LOG_BYTES = 16_000_000


class LocalChild:
    def __init__(self, process: subprocess.Popen[bytes], stderr: Path, stdout: Path) -> None:
        self._process = process
        self._stderr = stderr
        self._stdout = stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None:
            self._signal_group(signal.SIGKILL)  # what it left behind: data loaders, compilers
        return code

    def stop(self) -> None:
        # Only the leader: it saves first and stops its own helpers, which must not die under it.
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def stderr_tail(self) -> str:
        try:
            with open(self._stderr, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                return file.read().decode("utf-8", errors="replace").replace("\0", "").strip()
        except OSError:
            return ""

    def trim_logs(self) -> None:
        # The child appends (O_APPEND), so its next line goes to the new end.
        for path in (self._stderr, self._stdout):
            if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
                with open(path, "r+b") as file:
                    file.seek(-TAIL_BYTES, os.SEEK_END)
                    tail = file.read()
                    file.seek(0)
                    file.truncate()
                    file.write(b"[the beginning was cut: it grew too long]\n" + tail)
