"""One training run, step by step: tokenizer, rows, model, trainer, fit, save; and the evaluation after it."""

import gc
import json
import time
from collections.abc import Mapping
from typing import Any

import datasets
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from training.rlhf import evaluation, fitting, learners, loading, rendering, scoring
from training.rlhf.checks.estimate import row_limit
from training.rlhf.config import RunConfig
from training.rlhf.data import SPLITS, Fitting, Row, Split, drop_too_long
from training.rlhf.failures import Refused
from training.rlhf.measures import mixture_evaluation
from training.rlhf.methods import METHODS
from training.rlhf.progress import Cancelled, report
from training.rlhf.run_dir import ProgressWriter, RunDir, write_json
from training.rlhf.tuning import loaded_dtype, quantisation
from training.rlhf.tuning_kinds import adapters

datasets.disable_progress_bars()


def train(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Train, and leave model/. Goes on from the last checkpoint. Returns what result.json says about it."""
    if METHODS[config.method].makes != "figures":
        adapters.refuse_as_start(config.model)
    by_itself = learners.train_by_itself(run_dir, config, progress)
    if by_itself is not None:
        return by_itself
    makes_policy = METHODS[config.method].makes == "policy"
    tokenizer = loading.load_tokenizer(config.model)
    progress.write("Loading the model")
    numbers: Any = {"dtype": loaded_dtype(config), "quantisation": quantisation(config)}
    if makes_policy:
        model = loading.load_policy(config.model, **numbers)
    else:
        model = loading.load_reward_base(config.model, seed=config.seed, **numbers)
    loading.fit(model, tokenizer, where=config.model)

    progress.write("Reading the dataset")
    parts = {split: fitting_parts(run_dir, config, tokenizer, model.config, split=split) for split in SPLITS}
    rows = {split: together(found) for split, found in parts.items()}
    if not rows["train"].elements:
        raise Refused(
            f"No row is left to train on; {rows['train'].dropped} are longer than the run's limit.",
            str(run_dir.data),
            f"Raise max_length, or freeze a dataset to learn from: {METHODS[config.method].learns_from}",
        )
    progress.write(f"{len(rows['train'].elements)} rows to learn from, {rows['train'].dropped} too long")

    if words := learners.opening_words(config.method):
        progress.write(words)
    trainer = learners.learner(config.method).make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=rows["train"].elements,
        test=rows["test"].elements,
        config=config,
        run_dir=run_dir,
    )
    started = time.monotonic()
    stopping = fitting.fit(trainer, run_dir=run_dir, progress=progress, config=config)
    seconds = time.monotonic() - started

    held_out: dict[str, float] = {}
    if rows["test"].elements:
        progress.write("Measuring the loss on held-out rows")
        held_out = trainer.evaluate()
    by_dataset = mixture_evaluation.measured(trainer, config, parts["test"])
    report(progress, {"train_seconds": seconds}, message="Saving the model")
    fitting.save_trained(trainer, tokenizer, run_dir=run_dir, config=config)
    del trainer, model
    gc.collect()
    torch.cuda.empty_cache()
    if not makes_policy:  # as it was stored, which may be rounded
        scoring.write_canaries(*loading.load_reward_model(run_dir.model), folder=run_dir.model)
    return {
        "rows": {
            split: {"kept": len(part.elements), "dropped": part.dropped} for split, part in rows.items()
        },
        "steps": progress.total_steps,
        "lineage": json.loads((run_dir.model / "lineage.json").read_text(encoding="utf-8")),
        "train_seconds": round(seconds, 2),
        "held_out": held_out,
        "datasets": by_dataset,
        **({"early_stopping": stopping} if stopping else {}),
    }


def fitting_parts(
    run_dir: RunDir,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    *,
    split: Split,
) -> dict[str, Fitting[Row]]:
    """Rows of a split that the method learns from, by table, without those over the limit."""
    return {
        table: drop_too_long(
            rows,
            limit=row_limit(table, config, model_config),
            count_tokens=lambda messages: len(rendering.conversation_ids(tokenizer, messages)),
        )
        for table, rows in learners.tables(run_dir, config, split).items()
    }


def together(parts: Mapping[str, Fitting[Row]]) -> Fitting[Row]:
    """Those of all tables, one after the other."""
    return Fitting(
        [row for part in parts.values() for row in part.elements],
        sum(part.dropped for part in parts.values()),
        max((part.longest for part in parts.values()), default=0),
    )


def evaluate(
    run_dir: RunDir,
    config: RunConfig,
    progress: ProgressWriter,
    *,
    by_dataset: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge model/ as it stands on disk; leaves evaluation.json, and completions.jsonl for a policy.

    The model is whole, so it comes home also when its evaluation fails: the error is in place of the figures.
    `by_dataset`: what `train` says of each dataset of a mixture.
    """
    if METHODS[config.method].makes == "figures":
        found: dict[str, Any] = json.loads(run_dir.evaluation.read_text(encoding="utf-8"))
        return found
    try:
        if METHODS[config.method].makes == "policy":
            found = evaluation.evaluate_policy(run_dir, config, progress)
        else:
            found = evaluation.evaluate_reward_model(run_dir, config, progress)
        if config.mixture:
            found["datasets"] = mixture_evaluation.of_datasets(run_dir, config, by_dataset, progress)
            write_json(run_dir.evaluation, found)
        return found
    except Cancelled:
        raise
    except Exception as error:
        return evaluation.failed(run_dir, error, progress)


def add_to_evaluation(run_dir: RunDir, result: dict[str, Any]) -> None:
    """What training itself measured on held-out rows, and where it stopped, beside the figures."""
    found = result["evaluation"]
    found |= {name: result[name] for name in ("held_out", "early_stopping") if result.get(name)}
    write_json(run_dir.evaluation, found)
