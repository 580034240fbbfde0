"""What a run will write, in bytes, before it has: checkpoints and the model, against what is free.

A checkpoint holds what is trained and what its optimiser keeps, in fp32. As many are kept as
training.rlhf.checkpoints says, with one more while it is written, and all of them are there still when the
model is saved.
"""

import shutil
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from training.rlhf import checkpoints
from training.rlhf.config import RunConfig
from training.rlhf.run_dir import RunDir, RunError
from training.rlhf.tuning_kinds.trained_share import Weights

FP32 = 4
MOMENTS = 2 * FP32  # of AdamW
SMALL = 4_000_000  # tokenizer, logs, completions, figures
PEFT_VALUE_HEADS = ("lora", "dora", "qlora", "ia3")  # PPO's value adapter beside the policy's


class Need(NamedTuple):
    """Bytes."""

    checkpoint: int
    checkpoints: int  # how many there are at once
    model: int

    @property
    def bytes(self) -> int:
        return self.checkpoint * self.checkpoints + self.model + SMALL


def need(config: RunConfig, model_config: PretrainedConfig, weights: Weights, *, steps: int) -> Need:
    """What the run folder will take beside what is in it. `weights`: as `trained_share` counts them."""
    learnt = weights.trained
    if config.method == "ppo":  # the value model: an adapter of its own, or a whole body
        learnt += weights.trained if config.tuning.kind in PEFT_VALUE_HEADS else weights.whole
    once = max(1, ceil(steps / config.training.save_every))
    width = model_config.dtype.itemsize if isinstance(model_config.dtype, torch.dtype) else FP32
    adapter = FP32 * weights.added  # stored beside the model, or by itself as well
    return Need(
        checkpoint=(FP32 + MOMENTS) * learnt,
        checkpoints=min(checkpoints.KEPT + 1, once),
        model=width * weights.whole + adapter,
    )


def free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def errors(wanted: Need, *, there: int, run_dir: RunDir) -> list[RunError]:
    """An error where what is free does not suffice."""
    if wanted.bytes <= there:
        return []
    return [
        RunError(
            what=f"The disk is too small: this run writes {in_words(wanted.bytes)} "
            f"({wanted.checkpoints} checkpoints of {in_words(wanted.checkpoint)} at once, and the model with "
            f"{in_words(wanted.model)}), and {in_words(there)} are free.",
            where=str(run_dir.path),
            do=f"Free {in_words(wanted.bytes - there)}, or train less of the model (LoRA): a checkpoint "
            "holds what is trained, three times over.",
        )
    ]


def in_words(count: int) -> str:
    """
    >>> in_words(16_000_000_000), in_words(3_400_000), in_words(12)
    ('16.0 GB', '3.4 MB', '0.0 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
