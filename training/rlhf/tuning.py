"""What of a model is trained, in which precision, and with how much dropout."""

from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoConfig

from training.rlhf.config import RunConfig

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of fp32's mantissa


def lora(config: RunConfig, *, task: str) -> LoraConfig | None:
    """Low-rank adapters on every linear layer but the head; a new scalar head is trained whole."""
    if config.tuning.kind == "full":
        return None
    return LoraConfig(
        task_type=task,
        r=config.tuning.lora_rank,
        lora_alpha=config.tuning.lora_alpha,
        lora_dropout=config.tuning.lora_dropout,
        target_modules="all-linear",
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def without_dropout(model: torch.nn.Module) -> None:
    """Turn off the dropout that is a number in a module or a config (OPT, Falcon) and no nn.Dropout.

    TRL turns off only the latter. DPO compares a policy with its reference (2305.18290, equation 7): with
    dropout in one of them two equal models differ, and the first loss is not ln 2. What is saved says 0 too.
    """
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)


def make_ready(model: Any, config: RunConfig) -> None:
    """Put right what TRL's constructor leaves: call it on the trainer's model before the first step.

    It sets the dropout of the adapters to 0 like any other; the reference, read by then, has no adapters.
    And what is trained whole beside adapters keeps the type of its base: in bf16, 3 % of a head's weights
    moved in 16 steps at a rate of 1e-5, in fp32 all of them.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    for name, module in model.named_modules():
        if ".lora_dropout." in name and isinstance(module, torch.nn.Dropout):
            module.p = config.tuning.lora_dropout


def loaded_dtype(config: RunConfig) -> torch.dtype:
    """Weights that are trained are fp32, or small updates vanish; a frozen base may stay as it is stored."""
    stays = config.training.bf16 and config.tuning.kind == "lora" and _stored(config) == torch.bfloat16
    return torch.bfloat16 if stays else torch.float32


def saved_dtype(config: RunConfig) -> torch.dtype:
    """That of the model it began as: no round makes it larger, and the next one loads it as cheaply."""
    stored = _stored(config)
    return stored if stored is not None and stored in _DROPPED_BITS else torch.float32


@torch.no_grad()
def round_by_chance(model: torch.nn.Module, dtype: torch.dtype, *, seed: int) -> None:
    """Round fp32 weights to bf16 or fp16, up or down by chance: right on average (1502.02551, section 3).

    What was loaded from bf16 lies on its grid, where rounding to the nearest takes small updates back: of
    what DPO taught the starter, a third at a rate of 1e-5 (loss 0.6807 in fp32, 0.6848 to the nearest, 0.6807
    by chance), nearly all at 1e-6, and a third of LoRA's at 2e-5 (0.6903, 0.6913, 0.6903).
    Weights that did not move stay as they are. The noise comes from the CPU, the same on every device.
    """
    dropped = _DROPPED_BITS.get(dtype)
    if dropped is None:
        return
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        noise = torch.randint(0, 2**dropped, weight.shape, generator=generator, dtype=torch.int32)
        bits = weight.data.view(torch.int32) + noise.to(weight.device)
        weight.data = (bits & -(2**dropped)).view(torch.float32).to(dtype)


def _stored(config: RunConfig) -> torch.dtype | None:
    found: torch.dtype | None = AutoConfig.from_pretrained(config.model, trust_remote_code=False).dtype
    return found
