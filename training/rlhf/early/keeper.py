"""Early stopping (training.rlhf.early.early_stopping) for methods that learn by a trainer of transformers.

The trainer's own evaluation waits for an argument that refuses to be set without held-out rows, and its
EarlyStoppingCallback keeps the best weights only where a checkpoint is due: so this is ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.rlhf.checkpoints import step_of
from training.rlhf.config import RunConfig
from training.rlhf.early.early_stopping import EarlyStopping
from training.rlhf.progress import stop_requested
from training.rlhf.run_dir import ProgressWriter, RunDir


class Keeper(TrainerCallback):
    """Asks a trainer for evaluations and judges what it reports. `trainer` is a Checkpointed."""

    def __init__(self, trainer: Any, *, run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> None:
        self.trainer = trainer
        self.progress = progress
        self.early = EarlyStopping(run_dir, config, save=trainer.save_weights)
        self.values: dict[str, float] = {}  # of the evaluation under way

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_due = self.early.is_due(state.global_step, last=state.max_steps)
        # A stop is heard first: whoever resumes the run evaluates before the next step.
        control.should_evaluate = is_due and not stop_requested()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        found = {name: value for name, value in (logs or {}).items() if name.startswith("eval_")}
        self.values = found or self.values

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        said = self.early.judge(self.values, step=self.progress.step)
        if said:
            self.progress.write(said)
            control.should_save = control.should_training_stop = True

    def take_up(self, last: Path | None, *, total_steps: int) -> None:
        """Stand where the last checkpoint stood, and make the evaluation that a stop kept from being made."""
        self.early.read(last)
        if last is None:
            return
        self.progress.step = step_of(last)
        if self.early.is_due(self.progress.step, last=total_steps):
            self.trainer._load_from_checkpoint(str(last))
            with random_state_kept():
                self.trainer.evaluate()
            self.early.write(last)

    def give_best(self) -> None:
        """Leave the trainer with the best weights. What it evaluates from now on is not judged."""
        self.trainer.remove_callback(self)
        self.trainer.keeper = None
        if self.early.standing.best is not None:
            self.trainer.load_weights(self.early.folder)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """A DataLoader draws a number when it begins, also over rows that nobody shuffles."""
    with torch.random.fork_rng():
        yield
