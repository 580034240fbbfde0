"""One update of PPO: which completions of a rollout it reads, and their losses and gradients."""

import math

import torch
from torch import Tensor

from training.rlhf.config import RunConfig
from training.rlhf.losses import policy_gradient
from training.rlhf.ppo_parts.ppo_models import Models, batch_of, read_tokens, read_values
from training.rlhf.ppo_parts.rollout import Rollout

NOTED = ("loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac")


def an_epoch(config: RunConfig) -> int:
    """Updates of one pass over a rollout."""
    return math.ceil(config.ppo.rollout_size / _at_once(config))


def _at_once(config: RunConfig) -> int:
    """Completions of an update."""
    return config.training.batch_size * config.training.gradient_accumulation


def shuffle(seed: int, count: int, *numbers: int) -> list[int]:
    """An order of `count` things: the same for the same seed and numbers, in any process."""
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    found: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return found


def rows_of(drawn: Rollout, config: RunConfig, *, step: int, number: int) -> list[int]:
    """Which completions an update reads: another order each epoch; those of like length share a batch."""
    epoch, place = divmod(number, an_epoch(config))
    size = _at_once(config)
    order = shuffle(config.seed, len(drawn.completions), step, epoch)

    def length(index: int) -> int:
        return len(drawn.prompts[index]) + len(drawn.completions[index])

    if not config.training.group_by_length:
        return sorted(order[place * size :][:size], key=length)
    order.sort(key=length)
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return chunks[shuffle(config.seed, len(chunks), step, epoch)[place]]


def backward(
    models: Models, drawn: Rollout, rows: list[int], *, config: RunConfig, tokens: float, pad_id: int
) -> Tensor:
    """Add the gradients of a batch to its update of `tokens`; returns its share of the figures of NOTED.

    The losses meet in no weight, so that one graph after the other is in memory.
    """
    settings, device = config.ppo, models.policy.device
    batch = batch_of(
        [drawn.prompts[row] for row in rows],
        [drawn.completions[row] for row in rows],
        pad_id=pad_id,
        device=device,
    )
    width = batch.mask.shape[1]
    known = {
        name: getattr(drawn, name)[rows, :width].to(device)
        for name in ("logps", "values", "advantages", "returns")
    }
    with models.role("policy") as model:
        found = read_tokens(
            model, batch, temperature=config.sampling.temperature, entropy=settings.entropy_weight > 0
        )
        policy = policy_gradient.clipped_policy_loss(
            found.logps,
            old_logps=known["logps"],
            advantages=known["advantages"],
            mask=batch.mask,
            clip=settings.clip,
            tokens=tokens,
        )
        loss = policy.loss
        if found.entropies is not None:
            loss = loss - settings.entropy_weight * found.entropies.sum() / tokens
        torch.autograd.backward(loss)
    with models.role("value") as body:
        value = policy_gradient.clipped_value_loss(
            read_values(body, models.head, batch),
            old_values=known["values"],
            returns=known["returns"],
            mask=batch.mask,
            clip=settings.value_clip,
            tokens=tokens,
        )
        torch.autograd.backward(settings.value_weight * value)
    return torch.stack([policy.loss, value, policy.approx_kl, policy.clip_fraction]).detach()
