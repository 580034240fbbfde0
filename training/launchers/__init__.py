"""Where a child runs. A launcher starts one process for one run folder; `local` is this machine.

Another launcher (Ray, Slurm) has to keep the two promises of these protocols: nothing of a child is left
when `kill` has returned, and `evict` ends only processes that work in the folder.
"""

from pathlib import Path
from typing import Protocol

from training.rlhf.prompt_parts import NONE, PromptParts


class Child(Protocol):
    def poll(self) -> int | None:
        """The exit status (negative: the signal that killed it); None while it works."""

    def stop(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it and everything it started, now."""

    def stderr_tail(self) -> str:
        """The end of what it printed, for people."""

    def trim_logs(self) -> None:
        """Keep what it prints from filling the disk."""


class Server(Child, Protocol):
    def address(self) -> str:
        """host:port; empty while it loads."""


class Launcher(Protocol):
    device: str

    def prepare(self) -> None:
        """The worker is up: make ready what shortens the next start."""

    def close(self) -> None:
        """The worker leaves: nothing that was made ready stays."""

    def start(self, folder: Path, *, preflight: bool) -> Child: ...

    def serve(
        self, location: str, *, name: str, folder: Path, host: str, token: str, parts: PromptParts = NONE
    ) -> Server:
        """A child that answers for a policy in OpenAI's interface, to who knows the token."""

    def leave(self, folder: Path, *, token: str) -> Child:
        """A child that carries out the job in the folder (training.rlhf.leave)."""

    def evict(self, folder: Path) -> int | None:
        """End what still works in the folder for nobody; the process that could not be ended, or None."""
