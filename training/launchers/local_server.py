"""A child of this machine that answers over HTTP until it is told to stop (training.rlhf.serve)."""

import json
import subprocess
from pathlib import Path

from training.launchers.local_child import LocalChild


class LocalServer(LocalChild):
    """`announced`: the file into which it writes where it listens, once it does."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: Path, stdout: Path, announced: Path) -> None:
        super().__init__(process, stderr, stdout)
        self._announced = announced

    def address(self) -> str:
        """host:port; empty while it loads."""
        try:
            said = json.loads(self._announced.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        return f"{said['host']}:{said['port']}"
