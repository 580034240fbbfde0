"""A file of rows that is written chunk by chunk, and goes on where a run that was stopped left it.

A chunk counts once all of its lines are whole. What is written follows from the seed and the chunk's number
alone, so a file that was begun twice has the same bytes as one that was not.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.rlhf.progress import finishing_before_stop, raise_if_stopped


def whole_chunks(draft: Path, at_once: int) -> int:
    """How many rows of whole chunks it holds; what a dying process left of a chunk is cut off."""
    lines = draft.read_bytes().splitlines(keepends=True) if draft.exists() else []
    whole = sum(line.endswith(b"\n") for line in lines) // at_once * at_once
    if lines:
        os.truncate(draft, sum(map(len, lines[:whole])))
    return whole


def append(draft: Path, rows: Sequence[Any]) -> None:
    with open(draft, "a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def fill(
    path: Path, *, rows: int, at_once: int, make: Callable[[int, int], Sequence[Any]]
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Write `path` whole, by rename at the end: `make(start, number)` gives the rows of a chunk.

    Yields how many rows there are after each chunk that is new, and these rows. Raises Cancelled when a stop
    is asked for; what was made until then stays in the draft beside it.
    """
    if path.exists():
        return
    draft = path.with_name(f".{path.name}")
    done = whole_chunks(draft, at_once)
    with finishing_before_stop():  # a stop is heard at every token
        for start in range(done, rows, at_once):
            raise_if_stopped()
            made = make(start, start // at_once)
            append(draft, made)
            yield start + len(made), made
        os.replace(draft, path)
