"""What a process that was killed leaves half-written in a run folder: swept when the run is taken up again.

Standard library only. Whoever writes whole or not at all writes under a name of its own first, `.NAME.PID`;
`model.draft` and `checkpoints/draft` are folders in the same role. What a run goes on from (drawn completions
under `.drawn.jsonl`, checkpoints that hold complete.json, PPO's `replaced`) is no leftover.
"""

import contextlib
import re
import shutil
from pathlib import Path

from training.rlhf.run_dir import RunDir

_DRAFT = re.compile(r"\.(.+)\.(\d+)")  # .result.json.4711
FOLDERS = ("model.draft", "checkpoints/draft")


def sweep(run_dir: RunDir) -> list[str]:
    """Remove them, and return their names. Call with the folder's lock held, or when nobody works there."""
    found = [path for path in run_dir.path.iterdir() if _DRAFT.fullmatch(path.name)]
    found += [run_dir.path / name for name in FOLDERS if (run_dir.path / name).exists()]
    for path in found:
        remove(path)
    return sorted(path.name for path in found)


def drafts_of(folder: Path) -> list[Path]:
    """Drafts of the whole folder beside it, `.7.4711` of `7`; a draft of `71` is another run's."""
    names = folder.parent.glob(f".{folder.name}.*")
    return sorted(
        path for path in names if (found := _DRAFT.fullmatch(path.name)) and found[1] == folder.name
    )


def remove(path: Path) -> None:
    """A file or a folder; one that is gone already, or cannot be removed, is left to whoever comes next."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
