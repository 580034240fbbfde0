"""What is wrong with the rows of a dataset, before a run learns from them: errors, and warnings."""

import json
from collections import Counter
from collections.abc import Callable, Sequence

from training.rlhf import learners
from training.rlhf.config import RunConfig
from training.rlhf.data import (
    SPLITS,
    Element,
    Fitting,
    Row,
    Split,
    drop_too_long,
)
from training.rlhf.methods import METHODS
from training.rlhf.rows.door import Message
from training.rlhf.rows.held_out import HeldOut
from training.rlhf.run_dir import RunDir, RunError

MOST_DROPPED = 0.2  # a larger share of rows over the limit is refused: the rest is another dataset

Parts = dict[tuple[str, Split], Fitting[Row]]  # by table and split


def read_parts(
    run_dir: RunDir,
    config: RunConfig,
    *,
    limit_of: Callable[[str], int],
    count_tokens: Callable[[list[Message]], int],
) -> Parts:
    """Every table and split that the method reads, without the rows over their table's limit."""
    return {
        (table, split): drop_too_long(elements, limit=limit_of(table), count_tokens=count_tokens)
        for split in SPLITS
        for table, elements in learners.tables(run_dir, config, split).items()
    }


def of_split(parts: Parts, split: Split) -> list[Row]:
    return [element for (_, other), part in parts.items() if other == split for element in part.elements]


def figures(part: Fitting[Row]) -> dict[str, int]:
    return {
        "kept": len(part.elements),
        "dropped": part.dropped,
        "longest": part.longest,
        "ties": sum(isinstance(row, Element) and row.is_all_ties for row in part.elements),
    }


def errors(
    parts: Parts, train: list[Row], *, config: RunConfig, run_dir: RunDir, limit: int
) -> list[RunError]:
    found = []
    are_too_long = any(part.dropped for (_, split), part in parts.items() if split == "train")
    if not train and not are_too_long:  # else what is said below is the reason
        found.append(
            RunError(
                what="The dataset has no row to learn from.",
                where=str(run_dir.data),
                do=f"{METHODS[config.method].label} learns from: {METHODS[config.method].learns_from} "
                "Freeze a dataset that holds them.",
            )
        )
    for (table, split), part in parts.items():
        total = len(part.elements) + part.dropped
        if part.dropped > MOST_DROPPED * total:
            found.append(
                RunError(
                    what=f"{part.dropped} of {total} rows are longer than {limit} tokens; "
                    f"the longest has {part.longest}.",
                    where=f"{table}.{split}",
                    do=f"Raise max_length to {part.longest}, if the model has as many positions, "
                    "or use a dataset with shorter texts.",
                )
            )
    return found


def comparison_errors(train: Sequence[Element], *, where: str) -> list[RunError]:
    """What keeps comparisons from teaching anything; none of these when there is no row at all."""
    if not train:
        return []
    if all(element.is_all_ties for element in train):
        return [
            RunError(
                what=f"All {len(train)} rows are ties: nothing says what is better.",
                where=where,
                do="Judge more tasks, or use a rule that keeps the raters' decisions.",
            )
        ]
    if all(_is_one_text(element) for element in train):
        return [
            RunError(
                what="In every row the completions are the same text.",
                where=where,
                do="Sample at a higher temperature, and judge again.",
            )
        ]
    return []


def _is_one_text(element: Element) -> bool:
    return all(completion == element.completions[0] for completion in element.completions)


def warnings(
    train: list[Row],
    test: list[Row],
    prompts: HeldOut | None,
    *,
    parts: Parts,
    limit: int,
    config: RunConfig,
) -> list[str]:
    said: Counter[tuple[str, str, str]] = Counter()  # (prompt, chosen, rejected) of decided comparisons
    compared = [row for row in train if isinstance(row, Element)]
    for element in compared:
        for one in element.comparisons:
            if one.p > 0.5:
                said[_key(element, one.chosen, one.rejected)] += 1
    repeated = sum(count - 1 for count in said.values())
    contradictory = sum((prompt, other, one) in said for prompt, one, other in said if one < other)
    unseen = [row.prompt for row in test] + ([one.messages for one in prompts.prompts] if prompts else [])
    leaking = {_text(row.prompt) for row in train} & {_text(prompt) for prompt in unseen}
    same = sum(_is_one_text(element) for element in compared)
    dropped = sum(part.dropped for part in parts.values())
    findings = [
        (repeated, f"{repeated} comparisons say again what another one says."),
        (contradictory, f"{contradictory} pairs of completions were judged one way and the other way."),
        (same, f"{same} rows compare a text with itself and teach nothing."),
        (leaking, f"{len(leaking)} prompts are on both sides of the split: held-out figures will flatter."),
        (dropped, f"{dropped} rows are longer than {limit} tokens and will be left out."),
        (
            limit < config.training.max_length,
            f"The model has {limit} positions: max_length {config.training.max_length} is cut to that.",
        ),
        (not test, "Nothing is held out: there will be no figures on rows that it has not seen."),
    ]
    return [sentence for holds, sentence in findings if holds]


def _text(messages: list[Message]) -> str:
    return json.dumps(messages, sort_keys=True)


def _key(element: Element, one: int, other: int) -> tuple[str, str, str]:
    return _text(element.prompt), _text(element.completions[one]), _text(element.completions[other])
