"""The step on the longest batch, forward and backward, before a run counts as started.

A run that dies of its memory after an hour dies on its longest rows (LLaMA-Factory #4810), so they come
first: with gradients allocated and room held for what the optimiser will keep. What does not fit, or gives no
numbers, is refused with what to change. Nothing of it remains, neither weights nor gradients nor what chance
draws next: with and without it a run ends in the same bits (tests/training_rlhf/test_rehearsal.py).

Methods say by `longest_batch` and `rehearsed_loss` (training.rlhf.fitting.Checkpointed) what they read; PPO,
whose step is its own, is in training.rlhf.checks.online_rehearsal.
"""

import copy
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from training.rlhf.checks import memory
from training.rlhf.failures import NotBegun, is_out_of_memory
from training.rlhf.progress import report
from training.rlhf.run_dir import ProgressWriter, RunDir, write_json

QUICK = 5.0  # seconds: a step as short as this is taken twice, for the first one also loads kernels
SECONDS_OF_A_STEP = 0.02  # optimiser and logging, whatever the size
# What a trainer notes while it computes a loss, by the names of their attributes.
_NOTES = ("_metrics", "_total_train_tokens", "elements_per_batch", "held_out", "_written", "_micro",
          "current_gradient_accumulation_steps")  # fmt: skip


class Batch(NamedTuple):
    """What is read at once: rows (texts), tokens of the longest, and how the recipe came to it."""

    rows: int
    tokens: int
    batch_size: int
    accumulation: int
    checkpointing: bool


def of_trainer(trainer: Any, *, run_dir: RunDir, progress: ProgressWriter) -> None:
    """Rehearse what a trainer of transformers is about to do. Raises NotBegun."""
    arguments, model = trainer.args, trainer.model
    with _notes_kept(trainer), no_trace(model):
        if arguments.gradient_checkpointing:  # as its `train` will do
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs
            )
        model.train()
        inputs = trainer.longest_batch()
        rows, tokens = inputs["attention_mask"].shape if "attention_mask" in inputs else inputs["shape"]

        def step() -> float:
            with trainer.accelerator.autocast():
                loss: Tensor = trainer.rehearsed_loss(inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        batch = Batch(
            rows, tokens, arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps,
            arguments.gradient_checkpointing,
        )  # fmt: skip
        seconds = rehearse(
            step, model=model, weights=trained(model), batch=batch, run_dir=run_dir,
            moment_bytes=1 if "8bit" in str(arguments.optim) else 4,
        )  # fmt: skip
    guess, share = None, trainer.share_of_longest()
    if share is not None:
        steps = arguments.max_steps
        if steps < 1:
            at_once = batch.batch_size * batch.accumulation
            steps = ceil(ceil(len(trainer.train_dataset) / at_once) * arguments.num_train_epochs)
        guess = steps * (batch.accumulation * seconds * share + SECONDS_OF_A_STEP)
    tell(progress, run_dir, batch, seconds=seconds, guess=guess)


def rehearse(
    step: Callable[[], float],
    *,
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    batch: Batch,
    run_dir: RunDir,
    moment_bytes: int = 4,
) -> float:
    """Take the step beside what the optimiser will keep, and return its seconds. Raises NotBegun.

    `step` leaves gradients at the weights, and returns the loss. Until it has ended, rehearsal.json says
    that it is under way: whoever finds it so after the process was killed knows of what it died.
    """
    memory.reset()
    write_json(run_dir.rehearsal, {"under_way": True, **batch._asdict()})
    try:
        # Written to, not only asked for: the system counts pages when they are touched.
        kind = torch.uint8 if moment_bytes == 1 else torch.float32
        held = [torch.full_like(one, 1, dtype=kind) for one in (*weights, *weights)]
        seconds, loss = _timed(step)
        if seconds < QUICK:
            for weight in weights:
                weight.grad = None
            again, loss = _timed(step)
            seconds = min(seconds, again)
    except Exception as error:
        run_dir.rehearsal.unlink(missing_ok=True)
        if not is_out_of_memory(error):
            raise
        raise _too_large(batch, model, error) from error
    del held
    if unsound := _no_numbers(loss, model):
        run_dir.rehearsal.unlink(missing_ok=True)
        raise NotBegun(
            unsound,
            f"{batch.rows} texts of up to {batch.tokens} tokens",
            "Begin from another policy, or compute in fp32 (bf16 off). The weights that it starts from are "
            "numbers, so it is what they compute that overflows.",
        )
    return seconds


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    started = time.perf_counter()
    loss = step()  # a number by now: a GPU has caught up
    return time.perf_counter() - started, loss


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _no_numbers(loss: float, model: nn.Module) -> str:
    """What is wrong with the figures of the step; empty when nothing is."""
    if loss - loss != 0:  # 0 for numbers, not for nan and inf
        return "The loss of the very first step is no number."
    for name, weight in model.named_parameters():
        if weight.grad is not None and not torch.isfinite(weight.grad.sum(dtype=torch.float32)):
            return f"The gradient of the very first step is no number (at {name})."
    return ""


def _too_large(batch: Batch, model: nn.Module, error: BaseException) -> NotBegun:
    return NotBegun(
        f"One step on the longest batch does not fit into memory: {batch.rows} texts of up to "
        f"{batch.tokens} tokens. {str(error).strip().partition(chr(10))[0][:200]}",
        f"training.batch_size {batch.batch_size}, longest row {batch.tokens} tokens",
        advice(batch, model),
    )


def advice(batch: Batch, model: nn.Module) -> str:
    """What to change so that a batch takes less memory, what costs least first."""
    found = []
    if batch.batch_size > 1:
        half = batch.batch_size // 2
        found.append(
            f"batch_size {half} with gradient_accumulation {batch.accumulation * 2} learns the same in half "
            "of the memory for a batch"
        )
    if not batch.checkpointing:
        found.append("gradient_checkpointing keeps hardly any activations")
    found.append(f"a max_length below {batch.tokens} leaves the longest rows out")
    if not any(hasattr(weight, "quant_state") for weight in model.parameters()):
        kinds = "QLoRA" if isinstance(model, PeftModel) else "LoRA or QLoRA"
        found.append(f"tuning by {kinds} needs no moments for the whole model")
    return f"Change one of these: {'; '.join(found)}."


def tell(
    progress: ProgressWriter, run_dir: RunDir, batch: Batch, *, seconds: float, guess: float | None
) -> None:
    peak = memory.peak_bytes()
    figures = {
        "rehearsal/rows": batch.rows,
        "rehearsal/tokens": batch.tokens,
        "rehearsal/seconds": round(seconds, 4),
        "rehearsal/peak_memory_bytes": peak,
    }
    if guess is not None:
        figures["rehearsal/estimated_train_seconds"] = round(guess, 1)
    write_json(run_dir.rehearsal, figures)
    report(
        progress,
        figures,
        message=f"One step on the longest batch ({batch.rows} texts of up to {batch.tokens} tokens) took "
        f"{seconds:.2f} s and {peak / 1e9:.2f} GB at most",
    )


@contextmanager
def no_trace(*models: nn.Module) -> Iterator[None]:
    """Nothing that is done inside remains: no gradient, no draw of chance, no module in another mode."""
    python, numbers, here = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for model in models:
            for weight in model.parameters():
                weight.grad = None
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(here)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def _notes_kept(trainer: Any) -> Iterator[None]:
    """The trainer's curves begin with its first real step."""
    own = vars(trainer)
    before = {name: copy.deepcopy(own[name]) for name in _NOTES if name in own}
    try:
        yield
    finally:
        for name in _NOTES:
            own.pop(name, None)
        own.update(before)


def longest_rows(lengths: Sequence[int], texts: Sequence[int], size: int) -> list[int]:
    """Numbers of `size` rows whose batch, padded to its longest, holds most tokens.

    >>> longest_rows([5, 9, 7], [1, 1, 1], 2)
    [1, 2]
    >>> longest_rows([5, 9, 7], [6, 1, 1], 1)
    [0]
    """
    every = range(len(lengths))
    by_length = sorted(every, key=lambda number: -lengths[number])[:size]
    by_tokens = sorted(every, key=lambda number: -lengths[number] * texts[number])[:size]
    return max(
        (by_length, by_tokens),
        key=lambda found: max(lengths[one] for one in found) * sum(texts[one] for one in found),
    )


def share_of_longest(lengths: Sequence[int], size: int) -> float:
    """Tokens of a batch as they come, padded to its longest, in those of the longest batch. From 0 to 1.

    >>> share_of_longest([10, 10, 10, 10], 2)
    1.0
    """
    order = list(lengths)
    random.Random(0).shuffle(order)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return sum(max(batch) * len(batch) for batch in batches) / (max(order) * len(order))
