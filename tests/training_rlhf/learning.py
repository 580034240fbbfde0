"""What the tests of methods without a reward share: a recipe, a trainer of ours, its curve, a second try."""

import importlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.rlhf import fitting, loading, tuning
from training.rlhf.checkpoints import step_of
from training.rlhf.config import RunConfig, Training, Tuning
from training.rlhf.run_dir import ProgressWriter, RunDir

Rows = list[dict[str, Any]]


def make_config(
    method: str,
    policy: Path,
    *,
    lora: bool = False,
    lora_dropout: float = 0.0,
    sections: dict[str, Any] | None = None,
    **training: Any,
) -> RunConfig:
    """A recipe that logs each step; `sections` holds a method's own settings."""
    fixed = {"batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "warmup_ratio": 0.0, "save_every": 50}
    tuned = Tuning(kind="lora", lora_rank=4, lora_dropout=lora_dropout) if lora else Tuning()
    return RunConfig(
        method=method,
        seed=7,
        model=str(policy),
        tuning=tuned,
        training=Training(**(fixed | training)),
        **(sections or {}),
    )


def trainer_for(config: RunConfig, run_dir: RunDir) -> Any:
    """The method's trainer over its tables in `data/`."""
    method: Any = importlib.import_module(f"training.rlhf.{config.method}")
    tokenizer = loading.load_tokenizer(config.model)
    model = loading.load_policy(config.model, dtype=tuning.loaded_dtype(config))
    loading.fit(model, tokenizer, where=config.model)
    train, test = (
        [row for rows in method.tables(run_dir, config, split).values() for row in rows]
        for split in ("train", "test")
    )
    return method.make_trainer(
        model=model, tokenizer=tokenizer, train=train, test=test, config=config, run_dir=run_dir
    )


def learn(config: RunConfig, run_dir: RunDir, *, fresh: Callable[[], Any] | None = None) -> Any:
    """Train from the last checkpoint, or the start, with `fresh()` or the method's trainer."""
    trainer = fresh() if fresh else trainer_for(config, run_dir)
    fitting.fit(trainer, run_dir=run_dir, progress=ProgressWriter(run_dir))
    return trainer


def curve(trainer: Any, name: str = "loss") -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def trl_settings(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What a bare TRL script of the same recipe is given."""
    return fitting.settings(config.training, seed=config.seed, output_dir=folder / "trl") | {
        "save_strategy": "no"
    }


def assert_resumes_bit_exactly(
    config: RunConfig, run_dir: RunDir, *, fresh: Callable[[], Any] | None = None
) -> None:
    """Train through; then again from the checkpoint before the last one. The recipe saves two or more."""
    through = _weights(learn(config, run_dir, fresh=fresh))
    last = run_dir.last_checkpoint()
    assert last is not None
    shutil.rmtree(last)
    before = run_dir.last_checkpoint()
    assert before is not None
    resumed = learn(config, run_dir, fresh=fresh)
    assert 0 < step_of(before) < resumed.state.global_step == step_of(last)
    said = [line["message"] for line in run_dir.progress_after(0)]
    assert f"Training from step {step_of(before)}" in said
    again = _weights(resumed)
    assert through.keys() == again.keys()
    assert all(torch.equal(through[name], again[name]) for name in through)


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in trainer.model.named_parameters()}


def answered(number: int, text: str, **columns: Any) -> dict[str, Any]:
    """A row of `demonstrations`, and with more columns of `ratings` or `unpaired`."""
    return {
        "prompt": [{"role": "user", "content": f"Say hello, {number}."}],
        "completion": [{"role": "assistant", "content": text}],
    } | columns


def greeting(number: int, **columns: Any) -> dict[str, Any]:
    """Completions of many lengths: tokens and rows count differently."""
    pick = random.Random(number)
    return answered(number, f"Hello {pick.choice(['Ada', 'Bo', 'Cy'])}!" + "!" * pick.randrange(9), **columns)
