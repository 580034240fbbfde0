"""What is wrong with the rows of a dataset, before a run learns from them: errors, and warnings."""

import json
from collections import Counter
from collections.abc import Callable

from training.rlhf.config import RunConfig
from training.rlhf.data import (
    SPLITS,
    Element,
    Fitting,
    Split,
    drop_too_long,
    read_pairs,
    read_rankings,
    without_pairs_of,
)
from training.rlhf.door import Message
from training.rlhf.held_out import HeldOut
from training.rlhf.run_dir import RunDir, RunError

MOST_DROPPED = 0.2  # a larger share of rows over the limit is refused: the rest is another dataset

Table = str  # "pairs" or "rankings"
Parts = dict[tuple[Table, Split], Fitting]


def read_parts(
    run_dir: RunDir, config: RunConfig, *, limit: int, count_tokens: Callable[[list[Message]], int]
) -> Parts:
    """Every table and split that the method reads, without the rows over the limit."""
    return {
        (table, split): drop_too_long(elements, limit=limit, count_tokens=count_tokens)
        for split in SPLITS
        for table, elements in _tables(run_dir, config, split).items()
    }


def of_split(parts: Parts, split: Split) -> list[Element]:
    return [element for (_, other), part in parts.items() if other == split for element in part.elements]


def _tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[Table, list[Element]]:
    pairs = read_pairs(run_dir.data / f"pairs.{split}.jsonl")
    if config.method == "dpo":
        return {"pairs": pairs}
    rankings = read_rankings(run_dir.data / f"rankings.{split}.jsonl")
    return {"pairs": without_pairs_of(rankings, pairs), "rankings": rankings}


def figures(part: Fitting) -> dict[str, int]:
    return {
        "kept": len(part.elements),
        "dropped": part.dropped,
        "longest": part.longest,
        "ties": sum(element.is_all_ties for element in part.elements),
    }


def errors(parts: Parts, train: list[Element], *, run_dir: RunDir, limit: int) -> list[RunError]:
    found = []
    where = str(run_dir.data)
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
    if not train:
        found.append(
            RunError(
                what="The dataset has no comparison to learn from.",
                where=where,
                do="Freeze a dataset from rounds in which completions were compared or ranked.",
            )
        )
    elif all(element.is_all_ties for element in train):
        found.append(
            RunError(
                what=f"All {len(train)} rows are ties: nothing says what is better.",
                where=where,
                do="Judge more tasks, or use a rule that keeps the raters' decisions.",
            )
        )
    elif all(_is_one_text(element) for element in train):
        found.append(
            RunError(
                what="In every row the completions are the same text.",
                where=where,
                do="Sample at a higher temperature, and judge again.",
            )
        )
    return found


def _is_one_text(element: Element) -> bool:
    return all(completion == element.completions[0] for completion in element.completions)


def warnings(
    train: list[Element],
    test: list[Element],
    prompts: HeldOut | None,
    *,
    parts: Parts,
    limit: int,
    config: RunConfig,
) -> list[str]:
    said: Counter[tuple[str, str, str]] = Counter()  # (prompt, chosen, rejected) of decided comparisons
    for element in train:
        for one in element.comparisons:
            if one.p > 0.5:
                said[_key(element, one.chosen, one.rejected)] += 1
    repeated = sum(count - 1 for count in said.values())
    contradictory = sum((prompt, other, one) in said for prompt, one, other in said if one < other)
    unseen = [element.prompt for element in test] + (
        [one.messages for one in prompts.prompts] if prompts else []
    )
    leaking = {_text(element.prompt) for element in train} & {_text(prompt) for prompt in unseen}
    same = sum(_is_one_text(element) for element in train)
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
        (not test, "Nothing is held out: there will be no accuracy on comparisons that it has not seen."),
    ]
    return [sentence for holds, sentence in findings if holds]


def _text(messages: list[Message]) -> str:
    return json.dumps(messages, sort_keys=True)


def _key(element: Element, one: int, other: int) -> tuple[str, str, str]:
    return _text(element.prompt), _text(element.completions[one]), _text(element.completions[other])
