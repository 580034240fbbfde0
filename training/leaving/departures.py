"""Models that leave: asked for by people, carried out by a worker's child, one row each.

A claim is an UPDATE that succeeds only while the row is free; `worker` and `attempt` together name it, and
every later write repeats both.
"""

import json
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from training import exports, runs
from training.models import Artifact, Departure
from training.results import storable
from training.rlhf.config import HUB_ID
from training.rlhf.run_dir import LeaveJob

Form, State = Departure.Form, Departure.State
FREE: dict[str, Any] = {"worker": "", "leased_until": None}
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,59}")
FOLDER = re.compile(r"\d+\.\d+")
KEPT = timedelta(days=7)
# Bytes of a weight in each form, in relation to those that others have.
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


class DepartureRefused(Exception):
    """This cannot leave so; the message says why and what to do."""


def forms_of(artifact: Artifact) -> list[tuple[str, str]]:
    """The forms that there are, with words for people."""
    parts = exports.parts_of(artifact)
    stored = stored_dtype(artifact)
    found = []
    if "model" in parts:
        found.append((Form.STORED.value, f"As it is stored{f' ({stored})' if stored else ''}"))
        found += [
            (form.value, str(form.label))
            for form in (Form.BF16, Form.FP32)
            if not stored.endswith({"bf16": "bfloat16", "fp32": "float32"}[form.value])
        ]
    if "adapter" in parts:
        found.append((Form.ADAPTER.value, "The adapter alone, for PEFT"))
    return found


def stored_dtype(artifact: Artifact) -> str:
    """What config.json says; empty where it says nothing."""
    try:
        config = json.loads((Path(artifact.folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    found = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else ""
    return found if isinstance(found, str) else ""


def likely_base(artifact: Artifact) -> str:
    """What others load the adapter onto: a hub id, or where its parent was pushed; empty when unknown."""
    parent = artifact.run.policy
    if parent is None:
        return ""
    if parent.location and not parent.location.startswith(("/", ".", "~")):
        return parent.location
    pushed = Departure.objects.filter(artifact__policy=parent, state=State.COMPLETE, form__in=_WHOLE)
    return pushed.exclude(repo="").values_list("repo", flat=True).first() or ""


_WHOLE = (Form.STORED, Form.BF16, Form.FP32)


def hub_that_workers_reach() -> str:
    """Where a worker that is alive may push to; empty when none has a token."""
    return next((worker.hub for worker in runs.workers_alive() if worker.hub), "")


def ask(
    *,
    artifact: Artifact,
    form: str,
    repo: str = "",
    private: bool = True,
    base: str = "",
    licence: str = "",
    by: User | None = None,
) -> Departure:
    """Queue it; the same again while it is under way is the same. Raises DepartureRefused."""
    if form not in dict(forms_of(artifact)):
        raise DepartureRefused("This model is not there in that form.")
    if repo and (not HUB_ID.fullmatch(repo) or "/" not in repo or ".." in repo):
        raise DepartureRefused(f"{repo!r} is no name of a repository: write OWNER/NAME.")
    if base and not HUB_ID.fullmatch(base):
        raise DepartureRefused(f"{base!r} is no hub id: write OWNER/NAME, or leave it out.")
    if licence and not LICENCE.fullmatch(licence):
        raise DepartureRefused("The licence: as the hub names it, such as apache-2.0 or cc-by-4.0.")
    if repo and runs.workers_alive() and not hub_that_workers_reach():
        raise DepartureRefused(
            "No worker has a token for a hub. Set RATCHET_HUB_TOKEN, or RATCHET_HUB_TOKEN_FILE, in the "
            "worker's environment and start it again."
        )
    _require_room(artifact, form)
    live = artifact.departures.filter(state__in=(State.WAITING, State.WORKING), form=form, repo=repo).first()
    if live is not None:
        return live
    return Departure.objects.create(
        artifact=artifact, form=form, repo=repo, private=private, created_by=by, licence=licence,
        base=base or likely_base(artifact), message="Waiting for a worker.",
    )  # fmt: skip


def _require_room(artifact: Artifact, form: str) -> None:
    need = sum(path.stat().st_size for path in Path(artifact.folder).rglob("*") if path.is_file())
    if form == Form.FP32 and stored_dtype(artifact) in ("bfloat16", "float16"):
        need *= 2
    home = Path(settings.EXPORTS_DIR)
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if form != Form.ADAPTER and need > 0.95 * free:
        raise DepartureRefused(
            f"It needs {need / 1e9:.1f} GB in {home}, and {free / 1e9:.1f} GB are free. Free some space."
        )


def claim(*, worker: str, pushes: bool, lost: bool = True) -> Departure | None:
    """Take the next one. `pushes`: also one for a hub. `lost`: also one whose worker seems gone."""
    waiting = Departure.objects.waiting()
    if not lost:
        waiting = waiting.filter(state=State.WAITING)
    if not pushes and any(other.hub for other in runs.workers_alive()):
        waiting = waiting.filter(repo="")  # another worker has the token
    for row in waiting[:5]:
        taken = waiting.filter(pk=row.pk).order_by().update(
            worker=worker, leased_until=lease_end(), state=State.WORKING, attempt=F("attempt") + 1, percent=0
        )  # fmt: skip
        if taken == 1:
            return Departure.objects.select_related("artifact__run__dataset", "artifact__policy").get(
                pk=row.pk
            )
    return None


def write_job(row: Departure) -> Path:
    """The folder for training.rlhf.leave, with the model card as it is today."""
    artifact, part = row.artifact, "adapter" if row.form == Form.ADAPTER else "model"
    shutil.rmtree(row.folder, ignore_errors=True)
    row.folder.mkdir(parents=True)
    card = exports.model_card(
        artifact, part, base=row.base, licence=row.licence, repo=row.repo, form=row.form
    )
    job = LeaveJob(
        model=artifact.folder,
        adapter=str(exports.folder_of(artifact, "adapter")),
        form=row.form,
        base=row.base or exports.base_name(artifact),
        texts={
            exports.CARD: card,
            "lineage.json": json.dumps(exports.shared_lineage(artifact), indent=1),
        },
        leave_out=sorted(exports.NOT_FOR_OTHERS),
        repo=row.repo,
        private=row.private,
        message=f"{exports.title_of(artifact)}, from Ratchet",
    )
    (row.folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return row.folder


def write(row: Departure, **values: Any) -> bool:
    """Change a row that we hold; False, changing nothing, when it is not ours any more."""
    held = Departure.objects.filter(pk=row.pk, worker=row.worker, attempt=row.attempt, state=State.WORKING)
    return held.update(**values) == 1


def end(row: Departure, state: str, message: str, **values: Any) -> bool:
    ended = None if state == State.WAITING else Now()
    return write(row, **FREE, state=state, message=storable(message), ended_at=ended, **values)


def remove_old_folders() -> None:
    """What was written a week ago can be written again; what nobody knows of is a deleted project's."""
    home = Path(settings.EXPORTS_DIR)
    if not home.is_dir():
        return
    kept = Departure.objects.filter(
        models.Q(ended_at__isnull=True) | models.Q(ended_at__gt=timezone.now() - KEPT)
    )
    names = {row.folder.name for row in kept}
    for folder in home.iterdir():
        if FOLDER.fullmatch(folder.name) and folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)


def lease_end() -> models.Expression:
    return models.ExpressionWrapper(
        Now() + timedelta(seconds=settings.RUN_LEASE_SECONDS), output_field=models.DateTimeField()
    )
