"""What can be known before a run costs anything: `python -m training.rlhf RUN_DIR --preflight`.

Reads the tokenizer, the model's config and every row, but no weights. Answers the complaints that people
bring to trainers (lessons-training.md): rows that vanish in silence, models that never stop, two BOS tokens,
prompts that leak across the split, memory that runs out after an hour.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from training.rlhf import estimate, loading, rendering
from training.rlhf.config import RunConfig
from training.rlhf.data import (
    SPLITS,
    Element,
    Fitting,
    Message,
    Split,
    drop_too_long,
    read_pairs,
    read_rankings,
    without_pairs_of,
)
from training.rlhf.failures import Refused
from training.rlhf.loading import ModelRefused
from training.rlhf.run_dir import Preflight, RunDir, RunError

MOST_DROPPED = 0.2  # a larger share of rows over the limit is refused: the rest is another dataset

Table = str  # "pairs" or "rankings"


def check(run_dir: RunDir, config: RunConfig) -> Preflight:
    """The content of preflight.json. Never raises for what the user can put right: that is an error in it."""
    try:
        return _check(run_dir, config)
    except (Refused, ModelRefused) as error:
        return _answer(errors=[RunError(what=error.what, where=error.where, do=error.do)])
    except rendering.RenderError as error:
        return _answer(
            errors=[
                RunError(
                    what=str(error), where=config.model, do="Choose a model whose template takes these turns."
                )
            ]
        )


def _check(run_dir: RunDir, config: RunConfig) -> Preflight:
    if config.method == "sample":
        for location in config.policies.values():
            loading.load_tokenizer(location)
        return _answer()
    tokenizer = loading.load_tokenizer(config.model)
    model_config = AutoConfig.from_pretrained(config.model, trust_remote_code=False)
    errors = _vocabulary_errors(tokenizer, model_config, where=config.model)
    if config.reward_model:
        loading.load_tokenizer(config.reward_model)

    count_tokens = _counter(tokenizer)
    limit = estimate.length_limit(config, model_config)
    parts = {
        (table, split): drop_too_long(elements, limit=limit, count_tokens=count_tokens)
        for split in SPLITS
        for table, elements in _tables(run_dir, config, split).items()
    }
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for (table, split), part in parts.items():
        rows.setdefault(table, {})[split] = _figures(part)
    train = [element for (_, split), part in parts.items() if split == "train" for element in part.elements]
    test = [element for (_, split), part in parts.items() if split == "test" for element in part.elements]
    errors += _row_errors(parts, train, run_dir=run_dir, limit=limit)
    guess = estimate.of(config, model_config, train, count_tokens=count_tokens) if train else {}
    sample = train[0].conversation(train[0].comparisons[0].chosen) if train else None
    return _answer(
        errors=errors,
        warnings=[
            *rendering.template_problems(tokenizer),
            *_row_warnings(train, test, parts=parts, limit=limit, config=config),
            *_memory_warnings(guess),
        ],
        rows=rows,
        template=_template(tokenizer, sample),
        estimate=guess,
    )


def _answer(
    *,
    errors: list[RunError] | None = None,
    warnings: list[str] | None = None,
    rows: dict[str, Any] | None = None,
    template: dict[str, Any] | None = None,
    estimate: dict[str, Any] | None = None,
) -> Preflight:
    return Preflight(
        ok=not errors,
        errors=errors or [],
        warnings=warnings or [],
        rows=rows or {},
        template=template or {},
        estimate=estimate or {},
    )


def _tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[Table, list[Element]]:
    pairs = read_pairs(run_dir.data / f"pairs.{split}.jsonl")
    if config.method == "dpo":
        return {"pairs": pairs}
    rankings = read_rankings(run_dir.data / f"rankings.{split}.jsonl")
    return {"pairs": without_pairs_of(rankings, pairs), "rankings": rankings}


def _counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Message]], int]:
    """Counts tokens, each conversation once."""
    known: dict[str, int] = {}

    def count(messages: list[Message]) -> int:
        key = json.dumps(messages)
        if key not in known:
            known[key] = len(rendering.conversation_ids(tokenizer, messages))
        return known[key]

    return count


def _figures(part: Fitting) -> dict[str, int]:
    return {
        "kept": len(part.elements),
        "dropped": part.dropped,
        "longest": part.longest,
        "ties": sum(element.is_all_ties for element in part.elements),
    }


def _vocabulary_errors(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, where: str
) -> list[RunError]:
    highest, embeddings = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if highest < embeddings:
        return []
    return [
        RunError(
            what=f"The tokenizer knows tokens up to {highest}; the model has only {embeddings} embeddings.",
            where=where,
            do="Use the tokenizer that the model was trained with.",
        )
    ]


def _row_errors(
    parts: dict[tuple[Table, Split], Fitting], train: list[Element], *, run_dir: RunDir, limit: int
) -> list[RunError]:
    errors = []
    where = str(run_dir.data)
    for (table, split), part in parts.items():
        total = len(part.elements) + part.dropped
        if part.dropped > MOST_DROPPED * total:
            errors.append(
                RunError(
                    what=f"{part.dropped} of {total} rows are longer than {limit} tokens; "
                    f"the longest has {part.longest}.",
                    where=f"{table}.{split}",
                    do=f"Raise max_length to {part.longest}, if the model has as many positions, "
                    "or use a dataset with shorter texts.",
                )
            )
    if not train:
        errors.append(
            RunError(
                what="The dataset has no comparison to learn from.",
                where=where,
                do="Freeze a dataset from rounds in which completions were compared or ranked.",
            )
        )
    elif all(element.is_all_ties for element in train):
        errors.append(
            RunError(
                what=f"All {len(train)} rows are ties: nothing says what is better.",
                where=where,
                do="Judge more tasks, or use a rule that keeps the raters' decisions.",
            )
        )
    elif all(_is_one_text(element) for element in train):
        errors.append(
            RunError(
                what="In every row the completions are the same text.",
                where=where,
                do="Sample at a higher temperature, and judge again.",
            )
        )
    return errors


def _is_one_text(element: Element) -> bool:
    return all(completion == element.completions[0] for completion in element.completions)


def _row_warnings(
    train: list[Element],
    test: list[Element],
    *,
    parts: dict[tuple[Table, Split], Fitting],
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
    leaking = {_text(element.prompt) for element in train} & {_text(element.prompt) for element in test}
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


def _memory_warnings(guess: dict[str, Any]) -> list[str]:
    if not guess or guess["memory_bytes"] <= guess["memory_available_bytes"]:
        return []
    needed, there = (guess[name] / 1e9 for name in ("memory_bytes", "memory_available_bytes"))
    return [
        f"It may need {needed:.1f} GB of memory, and {there:.1f} GB are free: lower batch_size, use LoRA."
    ]


def _text(messages: list[Message]) -> str:
    return json.dumps(messages, sort_keys=True)


def _key(element: Element, one: int, other: int) -> tuple[str, str, str]:
    return _text(element.prompt), _text(element.completions[one]), _text(element.completions[other])


def _template(tokenizer: PreTrainedTokenizerBase, sample: list[Message] | None) -> dict[str, Any]:
    if sample is None:
        return {"hash": rendering.template_hash(tokenizer)}
    ids = rendering.conversation_ids(tokenizer, sample)
    ends = set(rendering.end_ids(tokenizer))
    while ids and not str(tokenizer.decode(ids[-1:])).strip():  # ChatML ends a turn with EOS and a newline
        ids.pop()
    return {
        "hash": rendering.template_hash(tokenizer),
        "sample": rendering.render_conversation(tokenizer, sample),
        "bos": ids.count(tokenizer.bos_token_id),
        "eos_is_last": bool(ids) and ids[-1] in ends,
    }
