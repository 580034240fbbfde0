"""Early stopping: a run ends when its held-out figure gets no better, and its best weights are its result.

Every `training.evaluate_every` steps the figure (training.rlhf.held_out_figures) is measured. An evaluation
is better when it beats the best one by more than `min_delta`; after `patience` in a row that are not, the
run stops (Prechelt 1998, "Early stopping, but when?"; his criterion UP). Patience 0 never stops, but the best
weights are kept all the same.

Where a run stands, and the best weights, are in each checkpoint (as hard links: they cost nothing twice), so
a run that resumes stops where one that ran through would have. Evaluations leave no trace in torch's random
state, so neither does it matter on which side of one a run was cut.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.held_out_figures import found_in
from training.rlhf.run_dir import RunDir, RunError, write_json

STANDING = "early_stopping.json"  # in a checkpoint, beside best/
BEST = "best"


@dataclass
class Standing:
    """What is known after the evaluations so far. Steps are 0 where there is none."""

    figure: str = ""
    best: float | None = None
    best_step: int = 0
    waited: int = 0  # evaluations since the best one
    judged_step: int = 0  # the last evaluation
    stopped_step: int = 0

    def take(self, value: float, *, step: int, higher_is_better: bool, config: RunConfig) -> bool:
        """Note an evaluation; whether it is the best so far. One that is no number is not."""
        training = config.training
        self.judged_step = step
        gain = math.inf if self.best is None else (value - self.best) * (1 if higher_is_better else -1)
        if math.isfinite(value) and gain > training.min_delta:
            self.best, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        if training.patience and self.waited >= training.patience:
            self.stopped_step = step
        return False


class EarlyStopping:
    """The evaluations of one run. `save` writes the trained weights as they are now into a folder."""

    def __init__(self, run_dir: RunDir, config: RunConfig, *, save: Callable[[Path], None]) -> None:
        self.folder = run_dir.checkpoints / BEST
        self.config = config
        self.save = save
        self.standing = Standing()

    @property
    def has_stopped(self) -> bool:
        return self.standing.stopped_step > 0

    def is_due(self, step: int, *, last: int) -> bool:
        """Whether the weights after this step are to be judged, and have not been."""
        every = self.config.training.evaluate_every
        is_time = step > 0 and (step % every == 0 or step == last)
        return is_time and self.standing.judged_step != step and not self.has_stopped

    def judge(self, values: Mapping[str, float], *, step: int) -> str:
        """Take an evaluation's figures in and keep the weights if they are the best. Words for people."""
        found = found_in(self.config, values)
        if found is None:
            raise Refused(
                "The held-out rows gave no figure to stop by.",
                "training.evaluate_every",
                "Set evaluate_every to 0, or freeze a dataset with more held-out rows.",
            )
        figure, value = found
        self.standing.figure = figure.name
        is_best = self.standing.take(
            value, step=step, higher_is_better=figure.higher_is_better, config=self.config
        )
        if is_best:
            self._keep()
        if self.has_stopped:
            return f"Stopped early at step {step}: {self.words()}"
        return ""

    def words(self) -> str:
        standing = self.standing
        if standing.best is None:
            return "no evaluation gave a number"
        return f"best at step {standing.best_step} ({standing.figure} {standing.best:.4g})"

    def _keep(self) -> None:
        draft = self.folder.with_name("best.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        self.save(draft)
        shutil.rmtree(self.folder, ignore_errors=True)
        draft.rename(self.folder)

    # What outlives the process

    def write(self, checkpoint: Path) -> None:
        """Put the standing and the best weights into a checkpoint that is being written."""
        shutil.rmtree(checkpoint / BEST, ignore_errors=True)
        if self.standing.best is not None:
            shutil.copytree(self.folder, checkpoint / BEST, copy_function=_link)
        write_json(checkpoint / STANDING, asdict(self.standing))  # last: it says that the weights are there

    def read(self, checkpoint: Path | None) -> None:
        """Stand where a checkpoint stood; without one, at the beginning."""
        shutil.rmtree(self.folder, ignore_errors=True)  # a run that died may have kept later ones
        self.standing = Standing()
        if checkpoint is None or not (checkpoint / STANDING).exists():
            return
        self.standing = Standing(**json.loads((checkpoint / STANDING).read_text(encoding="utf-8")))
        if (checkpoint / BEST).exists():
            shutil.copytree(checkpoint / BEST, self.folder, copy_function=_link)

    def result(self) -> dict[str, Any]:
        """For result.json and the run's page."""
        return asdict(self.standing)


def errors(config: RunConfig, *, held_out_rows: int, where: str) -> list[RunError]:
    """What keeps a run from stopping early, before it starts."""
    if not config.training.evaluate_every or held_out_rows:
        return []
    return [
        RunError(
            what="There are no held-out rows, and evaluate_every asks for evaluations on them.",
            where=where,
            do="Set evaluate_every to 0, or freeze a dataset whose split holds rows out.",
        )
    ]


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target
