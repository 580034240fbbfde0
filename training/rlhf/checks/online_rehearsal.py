"""What a method that draws is to read at its longest, before it has drawn anything.

Nobody knows yet what the policy will write, so each of the longest prompts is given a completion of as many
tokens as may be written. Reward models read it too: they lie in the same memory. Rules, functions and judges
are not asked, for what they would hear is nobody's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.rlhf import rendering, sampling, scoring
from training.rlhf.config import Sampling
from training.rlhf.rendering import Messages
from training.rlhf.sampling import Sampled


def longest(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    *,
    drawing: Sampling,
    count: int,
) -> tuple[list[Messages], list[Sampled]]:
    """The `count` longest prompts, again from the first where there are fewer, each as if it was answered."""
    known: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        known[number] = len(rendering.prompt_ids(tokenizer, prompt))
    order = sorted(known, key=lambda number: -known[number])
    chosen = [prompts[order[place % len(order)]] for place in range(count)]
    rows, most = sampling.prompts_with_room(model, tokenizer, chosen, sampling=drawing)
    ends = sampling.end_ids(model, tokenizer)
    token = next(number for number in range(len(tokenizer)) if number not in (*ends, tokenizer.pad_token_id))
    filler = (token,) * most
    text = str(tokenizer.decode(filler, skip_special_tokens=True))
    return chosen, [Sampled(text=text, finish="length", prompt_ids=tuple(row), ids=filler) for row in rows]


def score(rewards: Any, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> None:
    """Let the reward models among the rewards read them."""
    for reward in getattr(rewards, "functions", ()):
        if reward.kind == "model":
            rewards.parts[reward.name](prompts, samples)


def batch_of(trainer: Any, *, prompts: Sequence[Messages], drawing: Sampling) -> dict[str, Any]:
    """`batch_size` completions, as RLOOTrainer and GRPOTrainer take them, and what reward models read."""
    count = trainer.args.per_device_train_batch_size
    asked, samples = longest(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        prompts,
        drawing=drawing,
        count=count,
    )
    device, pad_id = trainer.accelerator.device, int(trainer.processing_class.pad_token_id)
    ids, mask = scoring.padded([one.prompt_ids for one in samples], pad_id=pad_id, left=True)
    written = torch.tensor([one.ids for one in samples]).to(device)
    return {
        "asked": asked,
        "samples": samples,
        "prompt_ids": ids.to(device),
        "prompt_mask": mask.to(device),
        "completion_ids": written,
        "completion_mask": torch.ones_like(written),
        "shape": (count, ids.shape[1] + written.shape[1]),
    }


def loss_of(trainer: Any, inputs: dict[str, Any], *, rewards: Any) -> Tensor:
    """Score and read the completions as a step does, and the loss of learning from them."""
    asked, samples, mask = inputs["asked"], inputs["samples"], inputs["completion_mask"]
    with torch.no_grad():
        with torch.autocast(mask.device.type, enabled=False):
            score(rewards, asked, samples)
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            mask.shape[1],
        )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    known = {
        "advantages": torch.ones(len(samples), device=mask.device),
        "old_logps": logps.sum(dim=1),
        "old_per_token_logps": logps,
        "ref_per_token_logps": logps,
        "num_items_in_batch": mask.sum().float(),
    }
    loss: Tensor = trainer.compute_loss(trainer.model, inputs | known)
    return loss
