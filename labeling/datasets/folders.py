"""Where a dataset's folder is drafted, what it is called, and how it comes to its place."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.utils.text import slugify

from labeling.datasets.errors import FreezeFailed
from labeling.models import Project


@contextmanager
def draft_folder() -> Iterator[Path]:
    """A folder beside the datasets, gone afterwards unless it was renamed."""
    root = Path(settings.DATASETS_DIR)
    draft: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".freezing-", dir=root))
        yield draft
    except OSError as error:
        # pyarrow sets errno too, but its own text is long.
        why = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOSPC:
            why = "the disk is full"
        raise FreezeFailed(f"The dataset could not be written: {why}. No file was kept.") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def folder_name(project: Project, name: str) -> str:
    suffix = hashlib.sha256(f"{project.pk}/{name}".encode()).hexdigest()[:10]
    return f"{project.slug[:60]}-{slugify(name)[:60]}-{suffix}"


def move_in(draft: Path, folder: str) -> None:
    """Rename a whole draft to its place. Call it last in the transaction that makes the row."""
    target = Path(settings.DATASETS_DIR) / folder
    draft.chmod(0o755)  # mkdtemp's 0700 would shut out the worker of another account
    shutil.rmtree(target, ignore_errors=True)  # left by a process that died between rename and commit
    os.rename(draft, target)
    _sync_folder(target.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
