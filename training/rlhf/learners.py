"""The module of each method that trains, found by the method's name: `training.rlhf.dpo` for "dpo".

A new method is a file here and a row of training.rlhf.methods. It reads its tables and makes a trainer, or
trains by itself; reading, dropping, checking, resuming, saving and evaluating are the same for all of them.
"""

import importlib
from types import ModuleType
from typing import Any, Protocol, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import rewards
from training.rlhf.config import RunConfig
from training.rlhf.data import Row, Split
from training.rlhf.methods import METHODS
from training.rlhf.rows.single_rows import read_prompts
from training.rlhf.run_dir import ProgressWriter, RunDir, RunError


class Learner(Protocol):
    """What a method's module holds."""

    def make_trainer(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        train: list[Any],
        test: list[Any],
        config: RunConfig,
        run_dir: RunDir,
    ) -> Any:
        """A trainer of transformers with training.rlhf.fitting.Checkpointed mixed in."""
        ...


def learner(method: str) -> Learner:
    return cast(Learner, _module(method))


def _module(method: str) -> ModuleType:
    return importlib.import_module(f"training.rlhf.{method}")


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Any]]:
    """Rows by table, as the method reads them; one that says nothing of it reads prompts."""
    read = getattr(_module(config.method), "tables", None)
    if read is None:
        return {"prompts": read_prompts(run_dir.data / f"prompts.{split}.jsonl")}
    found: dict[str, list[Any]] = read(run_dir, config, split)
    return found


def train_by_itself(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any] | None:
    """For a method whose loop is its own (`train` in its module); None: it makes a trainer."""
    train = getattr(_module(config.method), "train", None)
    return None if train is None else train(run_dir, config, progress)


def row_errors(config: RunConfig, train: list[Row], *, run_dir: RunDir) -> list[RunError]:
    """What the method itself finds wrong with the rows to learn from (`errors` in its module)."""
    errors = getattr(_module(config.method), "errors", None)
    return [] if errors is None else errors(train, config=config, where=str(run_dir.data))


def setting_errors(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, run_dir: RunDir
) -> tuple[list[RunError], list[str]]:
    """Errors and warnings of what the method needs beside rows: rewards, a teacher (`check` in its module).

    `cautions` in its module looks at the files once more and gives warnings.
    """
    module = _module(config.method)
    check = getattr(module, "check", None)
    errors, warnings = ([], []) if check is None else check(config, tokenizer)
    if METHODS[config.method].is_online:
        of_rewards = rewards.problems(config)
        errors, warnings = [*errors, *of_rewards[0]], [*warnings, *of_rewards[1]]
    cautions = getattr(module, "cautions", None)
    return errors, [*warnings, *([] if cautions is None else cautions(run_dir, config))]


def opening_words(method: str) -> str:
    """What a trainer of this method does while it is made, when that takes time (`WHILE_MADE`)."""
    return str(getattr(_module(method), "WHILE_MADE", ""))
