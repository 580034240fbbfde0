"""Several datasets as one: each read as if it were alone, then weighed, and joined.

The main dataset lies in `data/` and counts as it is. Of each further one (`data/mixture/NAME/`) every row's
weight is multiplied by the dataset's where the method's loss weighs rows; elsewhere the weight is how often a
row is taken: at 0.5 half of the rows, at 2 each of them twice, in every epoch the same ones, by the seed.
A prompt that any of them holds out is trained on from none. A run without a mixture is not touched at all.
"""

import copy
import json
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from training.rlhf.config import RunConfig
from training.rlhf.data import Element, Split
from training.rlhf.failures import Refused
from training.rlhf.mixture_settings import MAIN, WEIGHTED, MixedDataset
from training.rlhf.rows.door import Message, rows_in
from training.rlhf.run_dir import RunDir

Read = Callable[[RunDir, RunConfig, Split], Mapping[str, list[Any]]]
_BETWEEN = "/"  # of a dataset's name and its table's


def joined(read: Read, run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Any]]:
    """Rows by table, the main dataset's under the tables' names, those of others as "NAME/TABLE".

    `read` reads one dataset, as the method does. Rows to learn from are weighed; held-out rows are not.
    """
    if not config.mixture:
        return dict(read(run_dir, config, split))
    unseen = held_out_questions(run_dir, config) if split == "train" else set()
    found = {}
    for name, part in datasets_of(run_dir, config).items():
        for table, rows in read(part, config, split).items():
            allowed = [row for row in rows if question_of(row.prompt) not in unseen]
            found[_label(name, table)] = (
                weighed(allowed, _settings(name, config), config, table) if split == "train" else allowed
            )
    return found


def datasets_of(run_dir: RunDir, config: RunConfig) -> dict[str, RunDir]:
    """Each dataset by its name as a run folder whose `data` it is; the main one first."""
    parts = {MAIN: run_dir}
    for mixed in config.mixture:
        part = copy.copy(run_dir)
        part.data = run_dir.mixed_data(mixed.name)
        if not part.data.is_dir():
            raise Refused(
                f"The dataset {mixed.name} of the mixture is not there.",
                str(part.data),
                "Put its tables there, or take it out of the recipe.",
            )
        parts[mixed.name] = part
    return parts


def weighed(rows: Sequence[Any], mixed: MixedDataset | None, config: RunConfig, table: str) -> list[Any]:
    """What is learnt of a dataset's rows, in their order; all of the main one's (None)."""
    if mixed is None:
        return list(rows)
    if not mixed.weight:
        return []
    if config.method in WEIGHTED:
        return [_times(row, mixed.weight) for row in rows]
    whole, share = divmod(mixed.weight, 1)
    chosen = random.Random(f"{config.seed} {mixed.name} {table}").sample(
        range(len(rows)), round(share * len(rows))
    )
    return [*(row for _ in range(int(whole)) for row in rows), *(rows[number] for number in sorted(chosen))]


def _times(row: Any, weight: float) -> Any:
    """The row, its weight multiplied; comparisons have theirs each."""
    if isinstance(row, Element):
        said = [one._replace(weight=one.weight * weight) for one in row.comparisons]
        return replace(row, comparisons=said)
    return replace(row, weight=row.weight * weight)


def held_out_questions(run_dir: RunDir, config: RunConfig) -> set[str]:
    """What no dataset may be trained on: the questions of every test table of all of them."""
    return {
        question_of(row["prompt"] if "prompt" in row else [{"role": "text", "content": row.get("text", "")}])
        for part in datasets_of(run_dir, config).values()
        for path in sorted(part.data.glob("*.test.jsonl"))
        for _, row in rows_in(path)
    }


def question_of(prompt: list[Message]) -> str:
    """What a split goes by: the first user's turn, whatever its blanks and capitals; else all there is.

    >>> question_of([{"role": "system", "content": "Be."}, {"role": "user", "content": " Who\\n IS it?"}])
    'who is it?'
    """
    try:
        said = [turn["content"] for turn in prompt if turn["role"] == "user"][:1]
        said = said or [turn["content"] for turn in prompt]
        return " ".join(unicodedata.normalize("NFKC", " ".join(said)).casefold().split())
    except (TypeError, KeyError):  # no prompt; whoever reads its table says so, with file and line
        return json.dumps(prompt, sort_keys=True, default=str)


def cautions(read: Read, run_dir: RunDir, config: RunConfig) -> list[str]:
    """What people should know of a mixture before the start, a sentence each."""
    if not config.mixture:
        return []
    unseen, said = held_out_questions(run_dir, config), []
    for name, part in datasets_of(run_dir, config).items():
        rows = [row for rows in read(part, config, "train").values() for row in rows]
        leaking = sum(question_of(row.prompt) in unseen for row in rows)
        mixed = _settings(name, config)
        if leaking:
            said.append(
                f"{leaking} of {len(rows)} rows of the dataset {name} are left out: "
                "their prompts are held out, here or in another dataset."
            )
        if not rows and mixed is not None and mixed.weight:
            said.append(f"The dataset {name} has no row that this method learns from.")
    return said


def table_of(label: str) -> str:
    """
    >>> table_of("pairs"), table_of("stories/pairs")
    ('pairs', 'pairs')
    """
    return label.rpartition(_BETWEEN)[2]


def dataset_of(label: str) -> str:
    """
    >>> dataset_of("pairs"), dataset_of("stories/pairs")
    ('main', 'stories')
    """
    return label.rpartition(_BETWEEN)[0] or MAIN


def _label(name: str, table: str) -> str:
    return table if name == MAIN else f"{name}{_BETWEEN}{table}"


def _settings(name: str, config: RunConfig) -> MixedDataset | None:
    return next((mixed for mixed in config.mixture if mixed.name == name), None)
