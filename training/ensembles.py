"""Reward models that differ by seed alone: made together, and measured together once all are there.

Each leaves what it says of every held-out row (`held_out_scores`). How far they disagree about a
row is worked out from that, without loading a model: the figures go to the first run's evaluation, and what
they say of each completion into `ensemble.jsonl` of its folder, for whoever chooses pairs that are worth a
human's time.
"""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction

from labeling.agreement import Outcome, win_rate
from training.models import Run
from training.rlhf.reward_options import MOST_MODELS
from training.rlhf.run_dir import read_jsonl
from training.runs import RunRefused, create_run

FILE = "ensemble.jsonl"
SCORES = "scores.jsonl"
THIRDS = ("agree", "between", "disagree")


def create(*, size: int, config: dict[str, Any], **parts: Any) -> Run:
    """`size` runs that differ by their seed, the first of which is returned; one is an ordinary run.

    Raises RunRefused, also for several of anything but reward models.
    """
    if size == 1:
        return create_run(config=config, **parts)
    if parts.get("method") != Run.Method.REWARD_MODEL or not 1 < size <= MOST_MODELS:
        raise RunRefused(f"An ensemble is of 2 to {MOST_MODELS} reward models.")
    seed = int(config.get("seed", 0))
    with transaction.atomic():
        runs = [
            create_run(config={**config, "seed": (seed + number) % 2**32}, **parts) for number in range(size)
        ]
        Run.objects.filter(pk__in=[run.pk for run in runs]).update(ensemble=runs[0])
    runs[0].refresh_from_db()
    return runs[0]


def measure(run: Run) -> None:
    """Once the last of them is complete, store how far they disagree. In the transaction that ends a run."""
    if run.ensemble_id is None:
        return
    first = Run.objects.select_for_update().filter(pk=run.ensemble_id).first()  # the last of two sees both
    if first is None:
        return
    members = list(first.ensemble_runs.order_by("pk"))
    if len(members) < 2 or any(one.state != Run.State.COMPLETE for one in members):
        return
    read = [_read(one.folder) for one in members]
    if not read[0] or any(len(one) != len(read[0]) for one in read):
        return  # a file was lost: the models are there all the same
    rows = combined(read)
    _write(first.folder / FILE, rows)
    first.evaluation = {**first.evaluation, "ensemble": figures(rows, [one.pk for one in members])}
    first.save(update_fields=["evaluation"])


def _read(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(read_jsonl(folder / SCORES))
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Row:
    """A held-out row as all of them see it. `scores`: (models, completions), in standard deviations."""

    table: str
    line: int
    prompt: int
    scores: list[list[float]]
    comparisons: list[tuple[int, int, float]]

    @property
    def mean(self) -> list[float]:
        return [statistics.fmean(column) for column in zip(*self.scores, strict=True)]

    @property
    def disagreement(self) -> list[float]:
        """Standard deviation over the models, for each completion."""
        return [statistics.pstdev(column) for column in zip(*self.scores, strict=True)]

    def doubt(self, chosen: int, rejected: int) -> float:
        """Standard deviation over the models of how much better they find the one than the other."""
        return statistics.pstdev(model[chosen] - model[rejected] for model in self.scores)


def combined(read: Sequence[Sequence[dict[str, Any]]]) -> list[Row]:
    """Rows of all models, each model's scores in its own standard deviations over all held-out texts."""
    scaled = []
    for rows in read:
        scores = [score for row in rows for score in row["scores"]]
        mean, std = statistics.fmean(scores), statistics.pstdev(scores) or 1.0
        scaled.append([[(score - mean) / std for score in row["scores"]] for row in rows])
    return [
        Row(
            row["table"],
            row["line"],
            row.get("prompt", place),
            [model[place] for model in scaled],
            [(chosen, rejected, p) for chosen, rejected, p in row["comparisons"]],
        )
        for place, row in enumerate(read[0])
    ]


def figures(rows: Sequence[Row], members: Sequence[int]) -> dict[str, Any]:
    """How often they are right together and alone, and where they disagree least and most.

    A third that they agree about and one that they do not: where doubt is of use, the latter is right less
    often. Intervals are bootstrapped over prompts.
    """
    judged = []  # prompt, doubt, right together, right alone for each model
    for row in rows:
        mean = row.mean
        for chosen, rejected, p in row.comparisons:
            if p == 0.5:
                continue
            better, worse = (chosen, rejected) if p > 0.5 else (rejected, chosen)
            alone = [_right(model[better], model[worse]) for model in row.scores]
            judged.append((row.prompt, row.doubt(better, worse), _right(mean[better], mean[worse]), alone))
    judged.sort(key=lambda one: one[1])
    third = max(len(judged) // 3, 1)
    parts = (judged[:third], judged[third:-third], judged[-third:])
    apart = [value for row in rows for value in row.disagreement]
    return {
        "members": list(members),
        "disagreement": statistics.fmean(apart) if apart else None,
        "together": _share([(prompt, right) for prompt, _, right, _ in judged]),
        "alone": [
            _share([(prompt, alone[place]) for prompt, _, _, alone in judged])
            for place in range(len(members))
        ],
        "by_doubt": {
            name: _share([(prompt, right) for prompt, _, right, _ in part])
            for name, part in zip(THIRDS, parts, strict=True)
        }
        if len(judged) >= 9
        else {},
    }


def _right(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


def _share(scores: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    found = win_rate((Outcome(prompt, score) for prompt, score in scores), seed=0)
    return {"rate": found.rate, "low": found.low, "high": found.high, "n": found.n} if found else None


def _write(path: Path, rows: Sequence[Row]) -> None:
    """A line for each held-out row: table, line, and of its completions mean and disagreement."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(draft, "w", encoding="utf-8") as file:
        for row in rows:
            said = {"table": row.table, "line": row.line, "mean": row.mean, "disagreement": row.disagreement}
            file.write(json.dumps(said) + "\n")
    os.replace(draft, path)
