"""A rollout: completions that the policy drew, with all that its updates need to know about them.

The policy writes with its key-value cache, in batches of prompts of like length (training.rlhf.sampling).
What it wrote is scored by the rewards, and read once more by policy, reference and value model at the
temperature at which it was drawn. A completion that was cut is scored as it stands, less the penalty for a
missing EOS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.rlhf import sampling
from training.rlhf.config import RunConfig
from training.rlhf.losses import policy_gradient
from training.rlhf.losses.policy_gradient import RunningScale, masked_mean
from training.rlhf.method_settings import Ppo
from training.rlhf.ppo_parts.ppo_models import Models, batch_of, read_tokens, read_values
from training.rlhf.progress import raise_if_stopped
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds.reward_interface import RewardBatch
from training.rlhf.sampling import Sampled


@dataclass(frozen=True, kw_only=True)
class Readings:
    """[completions, tokens] each, on the CPU; 0 for padding."""

    mask: Tensor
    logps: Tensor  # of the policy that drew
    reference_logps: Tensor
    entropies: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What updates need. Tensors are [completions, tokens], on the CPU."""

    prompts: list[list[int]]  # tokens
    completions: list[list[int]]
    mask: Tensor
    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    figures: dict[str, float]  # what is told of it


def draw(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    *,
    config: RunConfig,
    seed: int,
) -> list[Sampled]:
    """One completion for each conversation. Raises Cancelled at the next token once a stop was asked for."""
    with models.role("policy"):
        return sampling.generate(models.policy, tokenizer, conversations, sampling=config.sampling, seed=seed)


@torch.no_grad()
def read(models: Models, samples: Sequence[Sampled], *, config: RunConfig, pad_id: int) -> Readings:
    """Read completions with policy, reference and value model. Raises Cancelled between two batches."""
    order = sorted(
        range(len(samples)), key=lambda index: -len(samples[index].prompt_ids + samples[index].ids)
    )
    size = config.training.batch_size
    longest = max(one.tokens for one in samples)
    found = {
        name: torch.zeros(len(samples), longest)
        for name in ("mask", "logps", "reference_logps", "entropies", "values")
    }
    places = [order[start : start + size] for start in range(0, len(order), size)]
    batches = [
        batch_of(
            [samples[index].prompt_ids for index in place],
            [samples[index].ids for index in place],
            pad_id=pad_id,
            device=models.policy.device,
        )
        for place in places
    ]

    def note(name: str, place: list[int], values: Tensor) -> None:
        found[name][place, : values.shape[1]] = values.float().cpu()

    temperature = config.sampling.temperature
    for place, batch in zip(places, batches, strict=True):
        raise_if_stopped()
        note("mask", place, batch.mask)
        with models.role("policy") as model:
            logps, entropies = read_tokens(model, batch, temperature=temperature, entropy=True)
        note("logps", place, logps)
        assert entropies is not None
        note("entropies", place, entropies)
    with models.role("reference") as model:
        for place, batch in zip(places, batches, strict=True):
            raise_if_stopped()
            logps, _ = read_tokens(model, batch, temperature=temperature, entropy=False)
            note("reference_logps", place, logps)
    with models.role("value") as body:
        for place, batch in zip(places, batches, strict=True):
            raise_if_stopped()
            note("values", place, read_values(body, models.head, batch))
    return Readings(**found)


def assemble(
    samples: Sequence[Sampled],
    readings: Readings,
    rewards: RewardBatch,
    *,
    settings: Ppo,
    kl_coefficient: float,
    scale: RunningScale,
) -> tuple[Rollout, RunningScale]:
    """The rollout, and the scale of rewards with this one's counted."""
    was_cut = torch.tensor([one.finish == "length" for one in samples])
    totals = torch.tensor(rewards.total) - settings.missing_eos_penalty * was_cut
    scale = scale.after(totals)
    divisor = scale.divisor if settings.normalise_rewards else 1.0
    mask = readings.mask
    shaped = policy_gradient.shaped_rewards(
        totals / divisor,
        logps=readings.logps,
        reference_logps=readings.reference_logps,
        mask=mask,
        kl_coefficient=kl_coefficient,
    )
    advantages, returns = policy_gradient.generalised_advantages(
        shaped, values=readings.values, mask=mask, gamma=settings.gamma, lam=settings.lam
    )
    if settings.whiten_advantages:
        advantages = policy_gradient.whitened(advantages, mask)
    log_ratios = (readings.logps - readings.reference_logps).sum(dim=1)
    figures = {
        "reward/mean": float(totals.mean()),
        "reward/std": float(totals.std(correction=0)),
        **{
            f"rewards/{name}/mean": float(torch.tensor(values).mean())
            for name, values in rewards.parts.items()
        },
        "kl": float(log_ratios.mean()),
        "kl_coef": kl_coefficient,
        "entropy": float(masked_mean(readings.entropies, mask)),
        # As the updates see it: in standard deviations where rewards are normalised.
        "objective/rlhf_reward": float((totals / divisor - kl_coefficient * log_ratios).mean()),
        "value/explained_variance": policy_gradient.explained_variance(
            readings.values, returns=returns, mask=mask
        ),
        "eos_rate": 1 - float(was_cut.float().mean()),
        "completion_length": float(mask.sum(dim=1).mean()),
    }
    rollout = Rollout(
        prompts=[list(one.prompt_ids) for one in samples],
        completions=[list(one.ids) for one in samples],
        mask=mask,
        logps=readings.logps,
        values=readings.values,
        advantages=advantages,
        returns=returns,
        figures=figures,
    )
    return rollout, scale
