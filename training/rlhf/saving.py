"""model/: what a run has trained, merged where that can be, rounded once, with its tokenizer and lineage."""

import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from training.rlhf import criteria, lineage, loading, prompt_parts
from training.rlhf.config import RunConfig
from training.rlhf.methods import METHODS
from training.rlhf.run_dir import RunDir, write_json
from training.rlhf.tuning import round_by_chance, saved_dtype
from training.rlhf.tuning_kinds import adapters
from training.rlhf.tuning_settings import BESIDE_THE_WEIGHTS


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run_dir: RunDir,
    config: RunConfig,
    save_beside: Callable[[Path], None] | None = None,
    finish: Callable[[Any, Path], None] | None = None,
) -> None:
    """Write model/ whole, by rename: weights, tokenizer with its template, lineage.

    What can be merged is, in fp32, and rounded once, by chance: a merge into bf16, or worse NF4, rounds
    learning away (transformers #31293). What cannot is stored beside the weights
    (training.rlhf.tuning_kinds.adapters).
    """
    draft = run_dir.path / "model.draft"
    for leftover in (draft, run_dir.model):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir()
    if save_beside is not None:
        save_beside(draft)  # before anything is rounded
    if config.tuning.kind in BESIDE_THE_WEIGHTS:
        model = adapters.detach(model, config.tuning, draft)
        model.float()
    elif isinstance(model, PeftModel):
        model.save_pretrained(str(run_dir.path / "adapter"))
        if config.tuning.kind == "qlora":
            model = _on_whole_base(run_dir, config, tokenizer)
        model = model.float().merge_and_unload()
    if finish is not None:
        finish(model, draft)
    dtype = saved_dtype(config)
    round_by_chance(model, dtype, seed=config.seed)
    model.to(dtype).save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    if parts := config.parts_of():  # it was trained under them, and writes under them
        write_json(draft / prompt_parts.FILE, parts.to_json())
    write_json(draft / "lineage.json", lineage.of(run_dir, config, tokenizer, packages=_packages()))
    os.replace(draft, run_dir.model)


def _on_whole_base(run_dir: RunDir, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The adapters that were trained on a quantised base, on the base as it is stored."""
    base = (
        loading.load_policy(config.model)
        if METHODS[config.method].makes == "policy"
        else loading.load_reward_base(config.model, seed=config.seed)
    )
    criteria.expand(base, config.reward_learning.heads)
    loading.fit(base, tokenizer, where=config.model)
    return PeftModel.from_pretrained(base, str(run_dir.path / "adapter"))


def _packages() -> dict[str, str]:
    return {
        name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
    }
