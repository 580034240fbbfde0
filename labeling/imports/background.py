"""Imports from a browser: a thread of the web process reads the file, and the import's row tells how far.

The thread holds a lock on the uploaded file, which the system releases when the process dies, however it
dies. So an import whose row says that it is under way, and whose file nobody holds, was interrupted: what it
stored was never shown (labeling.imports.staging). All web processes share VAR_DIR on one machine.
"""

import fcntl
import logging
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from django.conf import settings
from django.contrib.auth.models import User
from django.core.files.uploadedfile import UploadedFile
from django.db import close_old_connections, connection
from django.utils import timezone

from labeling.imports.items import UnreadableFile
from labeling.imports.report import ImportReport, Progress
from labeling.imports.run import clean_name, import_file
from labeling.imports.staging import discard_leftovers
from labeling.models import Import, Project

log = logging.getLogger(__name__)
State = Import.State

# A small file is done before the answer goes out: its report is the next page.
PATIENCE = 1.5


def start_import(
    *, project: Project, upload: UploadedFile, form: str, keep_good: bool, created_by: User
) -> Import:
    """Keep the upload, and import it in the background. Returns when it is done or after a moment."""
    key = uuid.uuid4().hex
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("xb")
    try:
        # Before the row is there, so that nobody can find the row and a file that is free.
        fcntl.flock(file, fcntl.LOCK_EX)
        for chunk in upload.chunks():
            file.write(chunk)
        file.flush()
        row = Import.objects.create(
            project=project,
            created_by=created_by,
            name=clean_name(upload.name or "upload"),
            form=form,
            keep_good=keep_good,
            upload=key,
            total=file.tell(),
        )
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    thread = threading.Thread(target=_work, args=(row.pk, file), name=f"import {row.pk}", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return row


def mark_interrupted(rows: Iterable[Import]) -> None:
    """Say so of each import that is under way by its row and that no process works on."""
    for row in rows:
        if row.is_under_way and _is_free(_path(row.upload)):
            message = "The server stopped while this import was under way. Nothing of it is stored."
            changed = (
                Import.objects.under_way()
                .filter(pk=row.pk)
                .update(state=State.INTERRUPTED, message=message, finished_at=timezone.now())
            )
            if changed:
                _path(row.upload).unlink(missing_ok=True)
                discard_leftovers(row.project)
            row.refresh_from_db()


def _path(key: str) -> Path:
    return Path(settings.VAR_DIR) / "imports" / key


def _is_free(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _work(pk: int, file: IO[bytes]) -> None:
    path = Path(file.name)
    try:
        close_old_connections()
        _import(Import.objects.select_related("project").get(pk=pk), path)
    finally:
        connection.close()
        path.unlink(missing_ok=True)
        file.close()


def _import(row: Import, path: Path) -> None:
    mine = Import.objects.under_way().filter(pk=row.pk)

    def tell(now: Progress) -> None:
        mine.update(done=now.done, total=now.total)

    def complete(report: ImportReport) -> None:
        # In the transaction that stores: the row says "complete" when everything is there, and not before.
        mine.update(
            state=State.COMPLETE, report=report.to_json(), finished_at=timezone.now(), form=report.form
        )

    try:
        report = import_file(
            project=row.project,
            path=path,
            name=row.name,
            form=row.form or None,
            keep_good=row.keep_good,
            progress=tell,
            before_storing=lambda: mine.update(state=State.STORING),
            on_stored=complete,
        )
    except UnreadableFile as error:
        mine.update(state=State.REFUSED, message=str(error), finished_at=timezone.now())
    except Exception as error:
        log.exception("Import %s failed", row.pk)
        message = f"{type(error).__name__}: {error}"[:1000]
        mine.update(state=State.FAILED, message=message, finished_at=timezone.now())
    else:
        if not report.stored:
            mine.update(
                state=State.REFUSED, report=report.to_json(), finished_at=timezone.now(), form=report.form
            )
