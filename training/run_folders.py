"""Writes the folder of a run from its row: recipe and data, all of it or nothing (by rename).

The layout is training.rlhf.run_dir's. Two files are ours alone: `run.json` says whose folder it is, and
`data/tasks.jsonl` says which prompt and purpose each line of `requests.jsonl` stands for.
"""

import json
import os
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

from django.utils import timezone

from labeling import datasets, rounds
from labeling.models import PreferenceDataset, Prompt
from training.constitutional import words_of
from training.models import Run
from training.rlhf import leftovers
from training.rlhf.methods import METHODS
from training.rlhf.run_dir import RunDir, SampleRequest, write_json
from training.runs import sampling_name

SPLITS = ("train", "test")
EVALUATION_PROMPTS = 256


class FolderNotWritten(Exception):
    """The run's data cannot be laid out; the message says what is missing or damaged."""


class SamplingTask(TypedDict):
    """A line of data/tasks.jsonl: what the same line of requests.jsonl is for."""

    prompt: int
    purpose: str


def write_run_folder(run: Run) -> RunDir:
    """The run's folder, written now or found whole from an earlier attempt. Raises OSError as well."""
    folder = run.folder
    for draft in leftovers.drafts_of(folder):  # the run is ours by its lease: whoever wrote this is gone
        leftovers.remove(draft)
    if is_written(run):
        return RunDir(folder)
    if folder.exists():
        _set_aside(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / "data").mkdir(parents=True)
        _fill(draft, run)
        os.replace(draft, folder)
    except datasets.DamagedDataset as error:
        raise FolderNotWritten(f"The dataset cannot be trained on: {error}. Freeze it again.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return RunDir(folder)


def is_written(run: Run) -> bool:
    """Whether the run's own folder is there, from an earlier attempt."""
    return _identity(run.folder) == _identity_of(run)


def sweep(run: Run) -> None:
    """Of a run that is deleted: what it would have gone on from, and what was left half-written.

    Its recipe, data, figures and model stay: nobody asked to lose them, and they are small or still used.
    """
    for draft in leftovers.drafts_of(run.folder):
        leftovers.remove(draft)
    if is_written(run):
        leftovers.sweep(RunDir(run.folder))
        leftovers.remove(RunDir(run.folder).checkpoints)


def _identity_of(run: Run) -> dict[str, Any]:
    created: datetime = run.created_at
    return {"run": run.pk, "created_at": created.isoformat()}


def _identity(folder: Path) -> Any:
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # one that cannot be read now may still be ours
        return None


def _set_aside(folder: Path) -> None:
    """A folder of this number from another database is kept, but never taken for this run's."""
    os.replace(folder, folder.with_name(f"{folder.name}.before-{timezone.now():%Y%m%d-%H%M%S-%f}"))


def _fill(draft: Path, run: Run) -> None:
    if run.method == Run.Method.SAMPLE:
        _write_requests(draft / "data", run)
    elif run.makes == "dataset":
        _write_constitution(draft / "data", run)
        _write_evaluation_prompts(draft / "data", run)
    else:
        _copy_dataset(draft / "data", run)
        _write_evaluation_prompts(draft / "data", run)
    write_json(draft / "config.json", run.config)
    write_json(draft / "run.json", _identity_of(run))


def _copy_dataset(data: Path, run: Run) -> None:
    if run.dataset is None:
        raise FolderNotWritten("The run has no dataset.")
    _copy_tables(data, run.dataset, method=run.method)
    for mixed in run.mixture.select_related("dataset"):
        folder = data / "mixture" / mixed.name
        folder.mkdir(parents=True)
        _copy_tables(folder, mixed.dataset, method=run.method)


def _copy_tables(data: Path, dataset: PreferenceDataset, *, method: str) -> None:
    source = datasets.folder_of(dataset)
    datasets.verify(source, digest=dataset.digest)
    # Copies, not links: what a trainer does to its files must not reach a frozen dataset.
    for table in METHODS[method].tables:
        for split in SPLITS:
            rows = source / table / f"{split}.jsonl"
            if rows.exists():
                shutil.copyfile(rows, data / f"{table}.{split}.jsonl")
    shutil.copyfile(source / "manifest.json", data / "manifest.json")


def _write_evaluation_prompts(data: Path, run: Run) -> None:
    """Held-out prompts, the same ones for every run of the project: win rates can be compared.

    They take the place of the dataset's own, which are those of its rounds alone.
    """
    held_out = Prompt.objects.filter(project=run.project, split=Prompt.Split.TEST).order_by("pk")
    rows = held_out.values_list("messages", flat=True)[:EVALUATION_PROMPTS]
    _write_lines(data / "prompts.test.jsonl", ({"prompt": messages} for messages in rows))


def _write_constitution(data: Path, run: Run) -> None:
    """The principles, and every prompt of the project that may be trained on: the run takes some of them."""
    if run.constitution is None:
        raise FolderNotWritten("The run has no constitution.")
    write_json(data / "constitution.json", words_of(run.constitution))
    asked = Prompt.objects.filter(project=run.project, split=Prompt.Split.TRAIN).order_by("pk")
    rows = asked.values_list("messages", flat=True).iterator(chunk_size=1000)
    _write_lines(data / "prompts.train.jsonl", ({"prompt": messages} for messages in rows))


def _write_requests(data: Path, run: Run) -> None:
    if run.round is None:
        raise FolderNotWritten("The run has no round to write for.")
    wanted = rounds.wanted(run.round)
    if not wanted:
        raise FolderNotWritten("The round asks for nothing: the project has no prompts for its plan.")
    _write_lines(
        data / "requests.jsonl",
        (
            SampleRequest(
                prompt=[
                    {"role": turn["role"], "content": turn["content"]} for turn in request.prompt.messages
                ],
                policies=[sampling_name(policy) for policy in request.policies],
            )
            for request in wanted
        ),
    )
    _write_lines(
        data / "tasks.jsonl",
        (SamplingTask(prompt=request.prompt.pk, purpose=str(request.purpose)) for request in wanted),
    )


def _write_lines(path: Path, rows: Iterable[Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
