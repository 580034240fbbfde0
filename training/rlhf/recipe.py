"""One training run, step by step: tokenizer, rows, model, trainer, fit, save; and the evaluation after it."""

import gc
import json
import time
from typing import Any

import datasets
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from training.rlhf import evaluation, fitting, learners, loading, rendering, scoring
from training.rlhf.checks.estimate import row_limit
from training.rlhf.config import RunConfig
from training.rlhf.data import SPLITS, Fitting, Row, Split, drop_too_long
from training.rlhf.failures import Refused
from training.rlhf.methods import METHODS
from training.rlhf.progress import Cancelled, report
from training.rlhf.run_dir import ProgressWriter, RunDir
from training.rlhf.tuning import loaded_dtype, quantisation
from training.rlhf.tuning_kinds import adapters

datasets.disable_progress_bars()


def train(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Train, and leave model/. Goes on from the last checkpoint. Returns what result.json says about it."""
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
    rows = {split: fitting_rows(run_dir, config, tokenizer, model.config, split=split) for split in SPLITS}
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
    fitting.fit(trainer, run_dir=run_dir, progress=progress)
    seconds = time.monotonic() - started

    held_out: dict[str, float] = {}
    if rows["test"].elements:
        progress.write("Measuring the loss on held-out rows")
        held_out = trainer.evaluate()
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
    }


def fitting_rows(
    run_dir: RunDir,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    *,
    split: Split,
) -> Fitting[Row]:
    """Rows of a split that the method learns from, without those over the limit."""
    parts = [
        drop_too_long(
            rows,
            limit=row_limit(table, config, model_config),
            count_tokens=lambda messages: len(rendering.conversation_ids(tokenizer, messages)),
        )
        for table, rows in learners.tables(run_dir, config, split).items()
    ]
    return Fitting(
        [row for part in parts for row in part.elements],
        sum(part.dropped for part in parts),
        max((part.longest for part in parts), default=0),
    )


def evaluate(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Judge model/ as it stands on disk; leaves evaluation.json, and completions.jsonl for a policy.

    The model is whole, so it comes home also when its evaluation fails: the error is in place of the figures.
    """
    try:
        if METHODS[config.method].makes == "policy":
            return evaluation.evaluate_policy(run_dir, config, progress)
        return evaluation.evaluate_reward_model(run_dir, config, progress)
    except Cancelled:
        raise
    except Exception as error:
        return evaluation.failed(run_dir, error, progress)
