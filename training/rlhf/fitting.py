"""What methods that learn by a trainer of TRL share: settings, checkpoints, progress, resuming, saving.

TRL's trainers do the work. This adds what lessons-training.md found missing or unsafe: checkpoints that count
only when whole, a stop between two steps, curves in progress.jsonl, and no settings left to chance.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from training.rlhf import checkpoints, saving
from training.rlhf.checks import finite, rehearsal
from training.rlhf.checks.alarms import Alarms
from training.rlhf.config import RunConfig, Training
from training.rlhf.early import early_stopping
from training.rlhf.early.keeper import Keeper, random_state_kept
from training.rlhf.failures import Diverged, Refused
from training.rlhf.progress import Cancelled, finishing_before_stop, report, stop_requested
from training.rlhf.run_dir import ProgressWriter, RunDir
from training.rlhf.tuning_settings import Tuning

TRAINED = "trained.safetensors"  # of a checkpoint
SAVE_SECONDS = 600  # since the last checkpoint: many small steps are fewer seconds, large ones many more


def settings(
    training: Training, *, seed: int, output_dir: Path, tuning: Tuning | None = None
) -> dict[str, Any]:
    """Arguments for TRL's configs. Whatever TRL would choose by itself and we care about is named.

    QLoRA's paged optimiser exists on a GPU alone; on a CPU there is no other memory to page to.
    """
    pages = tuning is not None and tuning.kind == "qlora" and tuning.paged_optimiser
    return {
        "optim": "paged_adamw_8bit" if pages and torch.cuda.is_available() else "adamw_torch",
        "output_dir": str(output_dir),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "warmup_steps": training.warmup_ratio,  # below 1: a share of all steps
        "lr_scheduler_type": training.schedule,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "train_sampling_strategy": "group_by_length" if training.group_by_length else "random",
        "bf16": bool(training.bf16),  # TRL takes None for True, on a CPU too
        "gradient_checkpointing": training.gradient_checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": training.log_every,
        "logging_nan_inf_filter": False,  # a loss that is no number ends the run, see Reporter
        "save_steps": training.save_every,
        "save_total_limit": checkpoints.KEPT,
        "report_to": "none",
        "disable_tqdm": True,
    }


class GroupedByLength(LengthGroupedSampler):
    """Rows of like length together, in an order that seed and epoch alone decide.

    That of transformers comes from torch's global random state, which is another one when a run resumes.
    """

    def __init__(self, lengths: list[int], *, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch  # by accelerate, before each epoch and when one is resumed

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed * 1_000_003 + self.epoch)
        order: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return order


class Reporter(TrainerCallback):
    """Tells how training goes, and stops it when asked or when the loss is no number any more."""

    def __init__(self, progress: ProgressWriter) -> None:
        self.progress = progress
        self.saved = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved = time.monotonic()
        self.progress.step, self.progress.total_steps = state.global_step, state.max_steps
        done = f" from step {state.global_step}" if state.global_step else ""
        self.progress.write(f"Training{done}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.step = state.global_step
        if time.monotonic() - self.saved > SAVE_SECONDS:
            control.should_save = True
        if stop_requested():
            control.should_save = True
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if any(logs.get(name, 0.0) - logs.get(name, 0.0) != 0 for name in ("loss", "grad_norm")):
            raise Diverged(state.global_step)  # x - x is 0 for numbers, not for nan and inf
        report(self.progress, logs)


class Checkpointed(Trainer):
    """Mixed into a trainer of TRL: each checkpoint is whole and marked, or removed and reported.

    A resumed run meets rows in the order of one that ran through, however they are grouped. All elements of a
    step count alike, also where its last batch has fewer (TRL weighs batches alike, however small they are).
    """

    elements_per_batch: float  # the mean over the batches of the step under way
    keeper: Keeper | None = None  # where the run may stop early

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.elements_per_batch = sum(batch["elements"] for batch in batches) / max(1, len(batches))
        return batches, None

    def divisor(self, inputs: dict[str, Any], *, training: bool) -> float:
        """What the sum over a batch's elements is divided by; the mean over the step's batches follows."""
        return self.elements_per_batch if training else float(inputs["elements"])

    def longest_batch(self) -> dict[str, Any]:
        """What takes most memory of all batches that may come (checks.rehearsal), on the device."""
        rows: Any = self.train_dataset
        texts = [len(one) for one in rows["conversations"]] if "conversations" in rows.column_names else None
        lengths = list(rows["length"])
        chosen = rehearsal.longest_rows(lengths, texts or [1] * len(lengths), self.args.train_batch_size)
        collate: Any = self.data_collator
        batch: dict[str, Any] = self._prepare_inputs(collate([rows[number] for number in chosen]))
        self.elements_per_batch = float(batch["elements"])
        return batch

    def rehearsed_loss(self, inputs: dict[str, Any]) -> Any:
        return self.compute_loss(cast(Any, self.model), inputs)

    def share_of_longest(self) -> float | None:
        """Tokens of a batch as they come, in those of the longest; None where that is not known."""
        rows: Any = self.train_dataset
        return rehearsal.share_of_longest(list(rows["length"]), self.args.train_batch_size)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return GroupedByLength(list(rows["length"]), batch_size=at_once, seed=self.args.seed)

    def _is_finite(self) -> bool:
        """Is what would be saved made of numbers, and the loss since the last report one too?"""
        numbers = (self._tr_loss, *self._trained().values())
        return bool(torch.stack([torch.isfinite(one).all() for one in numbers]).all())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self._is_finite():
            raise Diverged(self.state.global_step)  # the checkpoint before it remains
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            Trainer._save_checkpoint(self, model, trial)  # TRL's own adds a model card each time
            checkpoints.mark_complete(folder, step=self.state.global_step)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise checkpoints.CheckpointNotSaved(
                step=self.state.global_step,
                kept=RunDir(folder.parent.parent).last_checkpoint(),
                disk_full=checkpoints.is_disk_full(error),
                folder=folder,
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Only what is trained, by its name: all else is in the model that the run began from.

        PEFT would store what a prefix's network puts out, and not the network, which cannot be trained on.
        """
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder)
        if self.keeper is not None:
            self.keeper.early.write(folder)

    def save_weights(self, folder: Path) -> None:
        weights = {name: weight.detach().contiguous() for name, weight in self._trained().items()}
        save_file(weights, folder / TRAINED)
        self.save_beside(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))

    def load_weights(self, folder: Path) -> None:
        stored, trained = load_file(folder / TRAINED), self._trained()
        if stored.keys() != trained.keys():
            raise Refused(
                "The checkpoint holds other weights than this recipe trains.",
                str(folder),
                "Start a new run: a recipe is not changed once its run has begun.",
            )
        finite.refuse_checkpoint(stored.items(), folder)
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(stored[name])
        self.load_beside(folder)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """While it trains. A stop that is heard within saves the step, which is evaluated on resuming."""
        try:
            with random_state_kept():
                return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except Cancelled:
            self._save_checkpoint(self.model, None)
            raise

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        model: Any = self.accelerator.unwrap_model(self.model)
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def save_beside(self, folder: Path) -> None:
        """Write what is learnt beside the model's weights, into a checkpoint and into model/."""

    def load_beside(self, folder: Path) -> None:
        """Take it back from a checkpoint."""

    def finish(self, model: Any, folder: Path) -> None:
        """Make what was trained what is stored, once its adapters are merged; `folder` becomes model/."""


def fit(
    trainer: Trainer, *, run_dir: RunDir, progress: ProgressWriter, config: RunConfig | None = None
) -> dict[str, Any] | None:
    """Train from the last checkpoint, or the start. Raises Cancelled, once it is saved, when told to stop.

    Where `config` asks for early stopping, the trainer is left with the best weights, and how it went is
    returned (early_stopping.Standing).
    """
    last = run_dir.last_checkpoint()
    keeper = _keeper(trainer, run_dir=run_dir, progress=progress, config=config)
    if keeper is not None:
        keeper.take_up(last, total_steps=_steps_of(last)[1] if last else 0)
    try:
        is_over = keeper is not None and keeper.early.has_stopped
        _fit(trainer, last, run_dir=run_dir, progress=progress, is_over=is_over)
    finally:
        if isinstance(trainer, Checkpointed):
            trainer.keeper = None
    if keeper is None:
        return None
    keeper.give_best()
    return keeper.early.result()


def _keeper(
    trainer: Trainer, *, run_dir: RunDir, progress: ProgressWriter, config: RunConfig | None
) -> Keeper | None:
    if config is None or not config.training.evaluate_every or not isinstance(trainer, Checkpointed):
        return None
    if trainer.eval_dataset is None:
        found = early_stopping.errors(config, held_out_rows=0, where=str(run_dir.data))[0]
        raise Refused(found["what"], found["where"], found["do"])
    keeper = trainer.keeper = Keeper(trainer, run_dir=run_dir, config=config, progress=progress)
    trainer.add_callback(keeper)
    return keeper


def _fit(
    trainer: Trainer, last: Path | None, *, run_dir: RunDir, progress: ProgressWriter, is_over: bool
) -> None:
    if last is not None and (is_over or _is_trained(last)):
        trainer._load_from_checkpoint(str(last))
        progress.step = progress.total_steps = checkpoints.step_of(last)
        return
    if isinstance(trainer, Checkpointed):
        rehearsal.of_trainer(trainer, run_dir=run_dir, progress=progress)
    trainer.remove_callback(PrinterCallback)  # what it prints is in progress.jsonl
    trainer.add_callback(Reporter(progress))
    trainer.add_callback(Alarms(progress))
    with finishing_before_stop():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if stop_requested():
            progress.write(f"Stopped at step {progress.step}; the checkpoint is saved")
            raise Cancelled


def _is_trained(checkpoint: Path) -> bool:
    """A trainer that resumes after its last step would take one more."""
    step, steps = _steps_of(checkpoint)
    return step >= steps


def _steps_of(checkpoint: Path) -> tuple[int, int]:
    """Steps done, and steps that there are to be."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state["global_step"]), int(state["max_steps"])


def save_trained(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, *, run_dir: RunDir, config: RunConfig
) -> None:
    """`saving.save_model` for what a trainer has trained, with what it learnt beside the weights."""
    ours = trainer if isinstance(trainer, Checkpointed) else None
    model = trainer.accelerator.unwrap_model(trainer.model)
    saving.save_model(
        model,
        tokenizer,
        run_dir=run_dir,
        config=config,
        save_beside=ours.save_beside if ours else None,
        finish=ours.finish if ours else None,
    )
