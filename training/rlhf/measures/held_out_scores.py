"""What a reward model says of each held-out row, kept for later: `scores.jsonl` of its run folder.

Several reward models of one dataset that differ by chance alone are an ensemble; how far they disagree about
a row is worked out from these files, without loading a model (training.ensembles). Standard library only.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from training.rlhf.data import Element, Row
from training.rlhf.run_dir import RunDir, read_jsonl

FILE = "scores.jsonl"


class ScoredRow(TypedDict):
    """`line` of `data/TABLE.test.jsonl`, from 1; `prompt`: the same number for the same prompt.

    `scores`: of its completions, in the row's order.

    `comparisons`: [number of the chosen, number of the rejected, probability that people prefer the former].
    """

    table: str
    line: int
    prompt: int
    scores: list[float]
    comparisons: list[tuple[int, int, float]]


def write(run_dir: RunDir, rows: Sequence[Row], scores: Sequence[float]) -> None:
    """`scores`: of every conversation of every row, in order."""
    draft = run_dir.path / f".{FILE}.{os.getpid()}"
    given = iter(scores)
    prompts: dict[str, int] = {}
    with open(draft, "w", encoding="utf-8") as file:
        for row in rows:
            said: list[Any] = row.comparisons if isinstance(row, Element) else []
            line = ScoredRow(
                table=row.table,
                line=row.line,
                prompt=prompts.setdefault(json.dumps(row.prompt), len(prompts)),
                scores=[next(given) for _ in row.conversations()],
                comparisons=[(one.chosen, one.rejected, one.p) for one in said],
            )
            file.write(json.dumps(line) + "\n")
    os.replace(draft, run_dir.path / FILE)


def read(folder: Path) -> Iterator[ScoredRow]:
    """Nothing where a run left none."""
    yield from read_jsonl(folder / FILE)
