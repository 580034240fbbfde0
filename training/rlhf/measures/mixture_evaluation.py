"""What a run that learnt from several datasets came to on each of them: `datasets` in evaluation.json.

The other figures of evaluation.json are those of the main dataset and of the project's held-out prompts.
"""

import gc
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch

from training.rlhf import fitting, learners, loading, mixture, rendering, scoring
from training.rlhf.checks.estimate import length_limit
from training.rlhf.config import RunConfig
from training.rlhf.data import SPLITS, Fitting, Row, Split, drop_too_long, read_for_reward_model
from training.rlhf.measures import figures
from training.rlhf.measures.perplexity import perplexity
from training.rlhf.methods import METHODS
from training.rlhf.mixture_settings import MAIN
from training.rlhf.rows import held_out
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl

Figures = dict[str, float | None]
# Of what a trainer says, the figures shown for each dataset, and their names there.
_NAMES = {
    "eval_loss": "loss",
    "eval_accuracy": "accuracy",
    "eval_rewards/accuracies": "accuracy",
    "eval_rewards/margins": "margin",
    "eval_mean_token_accuracy": "token_accuracy",
}


class OfDataset(TypedDict):
    """An entry of `datasets`. `figures` by name; what a method does not tell is not there."""

    name: str  # "main", or as in the recipe's mixture
    weight: float
    source: str  # "" for the main one
    train: int  # rows learnt from in an epoch, those over the limit among them
    test: int  # held-out rows measured
    figures: Figures


def measured(trainer: Any, config: RunConfig, test: Mapping[str, Fitting[Row]]) -> dict[str, Figures]:
    """Loss and accuracy on each dataset's held-out rows; {} where the trainer's rows are others than these.

    A trainer that computed the reference's log-probabilities over all held-out rows before training could
    not do so again: it is given parts of its own rows.
    """
    rows = trainer.eval_dataset
    apart = config.method != "pretraining" and not METHODS[config.method].is_online  # rows are rows there
    if not config.mixture or not apart or rows is None:
        return {}
    if len(rows) != sum(len(part.elements) for part in test.values()):
        return {}
    trainer.remove_callback(fitting.Reporter)  # curves are of all rows
    found: dict[str, Figures] = {}
    start = 0
    for name, count in _counts({label: part.elements for label, part in test.items()}).items():
        if count:
            trainer.eval_dataset = rows.select(range(start, start + count))
            start += count
            trainer.evaluate()
            said = trainer.state.log_history[-1]  # TRL returns no metrics of its own
            found[name] = {short: float(said[long]) for long, short in _NAMES.items() if long in said}
    trainer.eval_dataset = rows
    return found


def of_datasets(
    run_dir: RunDir, config: RunConfig, found: Mapping[str, Figures] | None, progress: ProgressWriter
) -> list[OfDataset]:
    """Figures by dataset, of model/ as it is stored. `found`: what `measured` says of them."""
    progress.write("Measuring each dataset apart")
    if METHODS[config.method].makes == "reward_model":
        later = _reward_model(run_dir, config)
    elif config.method in ("sft", "pretraining"):
        later = _foretold(run_dir, config)
    elif METHODS[config.method].is_online:
        later = _written(run_dir, config)
    else:
        later = {}
    train, test = (_rows(run_dir, config, split) for split in SPLITS)
    weights = {MAIN: (1.0, "")} | {one.name: (one.weight, one.source) for one in config.mixture}
    return [
        OfDataset(
            name=name,
            weight=weight,
            source=source,
            train=train.get(name, 0),
            test=test.get(name, 0),
            figures={**(found or {}).get(name, {}), **later.get(name, {})},
        )
        for name, (weight, source) in weights.items()
    ]


def _rows(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, int]:
    return _counts(learners.tables(run_dir, config, split))


def _counts(tables: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Rows of each dataset."""
    found: dict[str, int] = defaultdict(int)
    for label, rows in tables.items():
        found[mixture.dataset_of(label)] += len(rows)
    return dict(found)


def _reward_model(run_dir: RunDir, config: RunConfig) -> dict[str, Figures]:
    """How often it prefers what people preferred, with its interval."""
    model, tokenizer = loading.load_reward_model(run_dir.model)
    loading.use_device(model)
    found: dict[str, Figures] = {}
    for name, part in mixture.datasets_of(run_dir, config).items():
        elements = drop_too_long(
            read_for_reward_model(part, "test"),
            limit=length_limit(config, model.config),
            count_tokens=lambda messages: len(rendering.conversation_ids(tokenizer, messages)),
        ).elements
        texts = [one for row in elements for one in row.conversations()]
        scores = scoring.reward_scores(model, tokenizer, texts, batch_size=config.training.batch_size)
        if elements:
            said = figures.reward_figures(elements, scores)
            found[name] = {short: said[short] for short in ("accuracy", "low", "high")}
    return found


def _foretold(run_dir: RunDir, config: RunConfig) -> dict[str, Figures]:
    """Nats for a held-out token before training and after."""
    found: dict[str, Figures] = defaultdict(dict)
    for key, location in {"loss": str(run_dir.model), "loss_before": config.model}.items():
        tokenizer = loading.load_tokenizer(location)
        model = loading.load_policy(location, dtype=loading.serving_dtype(location))
        loading.fit(model, tokenizer, where=location)
        loading.use_device(model)
        for name, part in mixture.datasets_of(run_dir, config).items():
            tables = learners.tables_of_one(part, config, "test").values()
            rows = [row for table in tables for row in table]
            said = perplexity(model, tokenizer, rows, batch_size=config.training.batch_size)
            if said is not None:
                found[name][key] = said["nats_per_token"]
                found[name]["perplexity" if key == "loss" else "perplexity_before"] = said["perplexity"]
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return dict(found)


def _written(run_dir: RunDir, config: RunConfig) -> dict[str, Figures]:
    """Of what was written to the held-out prompts of each dataset: EOS rate, length, win rate."""
    asked = [row["prompt"] for row in read_jsonl(run_dir.data / held_out.FILE)]
    by_policy: dict[str, dict[int, Any]] = defaultdict(dict)
    for line in read_jsonl(run_dir.completions):
        by_policy[line["policy"]][line["request"]] = line
    found = {}
    of_others = _questions_of_others(run_dir, config)
    every = set().union(*of_others.values())
    for name in (MAIN, *of_others):
        lines = [
            line
            for line in by_policy["new"]
            if (question := mixture.question_of(asked[line])) in of_others.get(name, ())
            or (name == MAIN and question not in every)
        ]
        new, old = ([by_policy[policy][line] for line in lines] for policy in ("new", "old"))
        if new:
            found[name] = {
                "prompts": float(len(new)),
                "eos_rate": sum(one["finish"] == "eos" for one in new) / len(new),
                "length": sum(one["tokens"] for one in new) / len(new),
                **_wins(config, [asked[line] for line in lines], new, old),
            }
    return found


def _questions_of_others(run_dir: RunDir, config: RunConfig) -> dict[str, set[str]]:
    """What each further dataset holds out. The main one has all held-out prompts of none of them."""
    return {
        name: {
            mixture.question_of(row.prompt)
            for rows in learners.tables_of_one(part, config, "test").values()
            for row in rows
        }
        for name, part in mixture.datasets_of(run_dir, config).items()
        if name != MAIN
    }


def _wins(
    config: RunConfig, prompts: Sequence[Any], new: Sequence[Any], old: Sequence[Any]
) -> dict[str, float]:
    if not config.reward_model:
        return {}
    model, tokenizer = loading.load_reward_model(config.reward_model)
    loading.use_device(model)
    texts = [
        [*prompt, {"role": "assistant", "content": one["text"]}]
        for lines in (new, old)
        for prompt, one in zip(prompts, lines, strict=True)
    ]
    scores = scoring.reward_scores(model, tokenizer, texts, batch_size=config.training.batch_size)
    said = figures.win_rate(scores[: len(new)], scores[len(new) :], seed=config.seed)
    return {"win_rate": said["rate"], "low": said["low"], "high": said["high"]}
