"""manifest.json: what a dataset holds, what it was made from and by which rule, and the hash of each file.

It holds no name and no time: the same labels under the same rule give the same bytes, whatever the
dataset is called and whenever it is frozen. Its own hash is the dataset's digest.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from labeling.datasets.examples import CollectionEntry

FORMAT = 1
NAME = "manifest.json"
SPLIT_RULE = "by prompt: what is held out is test, in every round and every dataset of the project"


class FileEntry(TypedDict):
    sha256: str
    bytes: int


class LabelCounts(TypedDict):
    read: int
    used: int
    left_out: dict[str, int]  # reason -> labels
    sha256: str  # of the labels themselves: their keys and values, in order


class RoundEntry(TypedDict):
    number: int
    kind: str
    protocol: dict[str, Any]
    overlap: int
    labels: int
    raters: int
    skips: int


class Parents(TypedDict):
    rounds: list[RoundEntry]
    collections: NotRequired[list[CollectionEntry]]  # what files brought in that compares nothing
    policies: list[dict[str, Any]]  # who wrote the completions that were judged, and how many


class Made(TypedDict):
    """What an AI dataset was made by; `lineage.jsonl` beside it has each row as it was written."""

    method: str
    run: int
    policy: str  # its name
    judge: str  # its name or address; empty where none judged
    seed: int
    sampling: dict[str, Any]
    constitution: dict[str, Any]  # version, and the principles in full


class Manifest(TypedDict):
    format: int
    project: str
    rule: str
    split: str
    parents: Parents
    labels: LabelCounts
    raters: int
    tables: dict[str, dict[str, int]]  # table -> split -> rows
    files: dict[str, FileEntry]  # path below the folder -> hash and size
    made: NotRequired[Made]


class DamagedDataset(Exception):
    """A file of a frozen dataset is missing or is not what the manifest says."""


def sealed_files(root: Path) -> dict[str, FileEntry]:
    """Hash every file below `root`, and see it to the disk."""
    entries = {}
    for path in _files(root):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[path.relative_to(root).as_posix()] = FileEntry(sha256=digest, bytes=path.stat().st_size)
    return entries


def write(root: Path, manifest: Manifest) -> str:
    """Write manifest.json and return its sha256."""
    content = (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode()
    with open(root / NAME, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def verify(root: Path, *, digest: str) -> Manifest:
    """Read the manifest of the folder and check it and every file. Raises DamagedDataset."""
    try:
        content = (root / NAME).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedDataset(f"{NAME} of {root.name} was changed after the dataset was frozen")
        manifest: Manifest = json.loads(content)
        for name, entry in manifest["files"].items():
            with open(root / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise DamagedDataset(f"{name} of {root.name} was changed after the dataset was frozen")
    except FileNotFoundError as error:
        raise DamagedDataset(f"{_place(error)} of {root.name} is missing") from error
    except OSError as error:
        raise DamagedDataset(f"{_place(error)} of {root.name} cannot be read: {error.strerror}") from error
    return manifest


def _place(error: OSError) -> str:
    return Path(str(error.filename)).name if error.filename else "A file"


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())
