"""PPO's step on the longest batch, before training begins (training.rlhf.checks.rehearsal).

As many of the longest prompts as are on the device at once, each with a completion of as many tokens as may
be written: read by reward model, policy, reference and value model, and learnt from once.
"""

from typing import TYPE_CHECKING

import torch

from training.rlhf.checks import online_rehearsal, rehearsal
from training.rlhf.checks.rehearsal import Batch
from training.rlhf.ppo_parts import ppo_update, rollout
from training.rlhf.ppo_parts.rollout import Rollout

if TYPE_CHECKING:
    from training.rlhf.ppo import Loop


def of_loop(loop: "Loop") -> None:
    """Raises NotBegun where an update of the loop cannot be taken."""
    models, config = loop.models, loop.config
    count = min(config.training.batch_size, config.ppo.rollout_size)
    pad_id = int(loop.tokenizer.pad_token_id)
    weights = list(models.trained.values())
    asked, samples = online_rehearsal.longest(
        models.policy, loop.tokenizer, loop.prompts, drawing=config.sampling, count=count
    )

    def step() -> float:
        models.recompute(False)
        online_rehearsal.score(loop.rewards, asked, samples)
        found = rollout.read(models, samples, config=config, pad_id=pad_id)
        drawn = Rollout(
            prompts=[list(one.prompt_ids) for one in samples],
            completions=[list(one.ids) for one in samples],
            mask=found.mask,
            logps=found.logps,
            values=found.values,
            advantages=found.mask.clone(),
            returns=found.values + found.mask,
            figures={},
        )
        models.recompute(True)
        try:
            figures = ppo_update.backward(
                models,
                drawn,
                list(range(count)),
                config=config,
                tokens=float(found.mask.sum()),
                pad_id=pad_id,
            )
        finally:
            models.recompute(False)
        return float(figures[:2].sum())

    longest = max(len(one.prompt_ids) + len(one.ids) for one in samples)
    batch = Batch(
        count, longest, config.training.batch_size, config.training.gradient_accumulation,
        config.training.gradient_checkpointing,
    )  # fmt: skip
    with rehearsal.no_trace(models.policy, models.body, models.head):
        seconds = rehearsal.rehearse(
            step, model=models.policy, weights=weights, batch=batch, run_dir=loop.run_dir
        )
    torch.cuda.empty_cache()
    # How long a run takes is for the most part how long the policy writes: this step does not tell.
    rehearsal.tell(loop.progress, loop.run_dir, batch, seconds=seconds, guess=None)
