"""What of a model is trained, in which precision, and with how much dropout.

A trainer applies any kind of tuning (training.rlhf.tuning_settings) in three calls: `prepare` marks weights
of the model itself, `peft_config` goes to TRL's constructor, and `make_ready` puts right what that leaves.
"""

from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
)
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.tuning_kinds import bottleneck, virtual_tokens
from training.rlhf.tuning_settings import LOW_RANK, PREFIXES

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of fp32's mantissa
_TRAINS_FP32_WEIGHTS = ("full", "head", "freeze")
# The projections of an attention, by the names that transformers gives them; GPT-2 has another c_proj.
_ATTENTION = (
    r".*\.(self_attn|self_attention|attention|attn)"
    r"\.(\w*proj|c_attn|query|key|value|query_key_value|dense|Wqkv|qkv\w*)"
)


def prepare(model: PreTrainedModel, config: RunConfig) -> None:
    """Say which weights of the model itself are trained; PEFT does so for its own kinds.

    head: the output head, and nothing that it reads. Where it shares its matrix with the embeddings, it gets
    one of its own first: training the shared one would train the features as well.
    freeze: everything but the embeddings and the first layers. A head that shares the embeddings' matrix
    stays with them, for the same reason.
    bottleneck: adapters, put into the model here; a reward model's new head as well.

    Raises Refused where the model has no such parts.
    """
    kind = config.tuning.kind
    if kind == "head":
        _train_only(model, _own_head(model))
    elif kind == "freeze":
        _freeze_below(model, config.tuning.frozen_layers)
    elif kind == "bottleneck":
        bottleneck.insert(model, size=config.tuning.bottleneck_size, seed=config.seed)
        adapters = [module for module in model.modules() if isinstance(module, bottleneck.Bottleneck)]
        _train_only(model, *adapters, *([] if model.can_generate() else [_own_head(model)]))
    if kind in ("head", "freeze", "bottleneck") and config.training.gradient_checkpointing:
        # Below what is trained nothing asks for a gradient: a layer that is computed twice would have none.
        model.enable_input_require_grads()  # type: ignore[no-untyped-call]


def _own_head(model: Any) -> nn.Module:
    if not model.can_generate():
        score: nn.Module = model.get_submodule("score")
        return score
    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(embeddings.weight.detach().clone())
        for part in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
            part.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    return head


def _train_only(model: nn.Module, *modules: nn.Module) -> None:
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)


def _freeze_below(model: nn.Module, count: int) -> None:
    layers = bottleneck.layers_of(model)
    if count >= len(layers):
        raise Refused(
            f"The model has {len(layers)} layers, and the first {count} would be frozen.",
            "tuning.frozen_layers",
            f"Freeze at most {len(layers) - 1} layers, or train the output head only.",
        )
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    for layer in layers[:count]:
        layer.requires_grad_(False)


def peft_config(config: RunConfig, *, task: str) -> PeftConfig | None:
    """PEFT's part of the tuning, None where it has none. `task`: CAUSAL_LM, or SEQ_CLS for a reward model.

    A new scalar head is trained whole beside adapters of any kind.
    """
    tuning = config.tuning
    common: dict[str, Any] = {
        "task_type": task,
        "modules_to_save": ["score"] if task == "SEQ_CLS" else None,
    }
    if tuning.kind in LOW_RANK:
        return LoraConfig(
            **common,
            r=tuning.lora_rank,
            lora_alpha=tuning.lora_alpha,
            lora_dropout=tuning.lora_dropout,
            target_modules=_ATTENTION if tuning.lora_targets == "attention" else "all-linear",
            use_dora=tuning.kind == "dora",
        )
    if tuning.kind == "ia3":
        return IA3Config(**common)  # on keys, values and the MLP's output; PEFT knows their names
    if tuning.kind in PREFIXES:
        # 2101.00190 trains a prefix through a small network, which it throws away; 2110.07602 without one.
        return PrefixTuningConfig(
            **common,
            num_virtual_tokens=tuning.virtual_tokens,
            prefix_projection=tuning.kind == "prefix",
        )
    if tuning.kind == "prompt":
        # Beginning at embeddings of the vocabulary: 2104.08691, section 3.2.
        return PromptTuningConfig(
            **common,
            num_virtual_tokens=tuning.virtual_tokens,
            prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        )
    if tuning.kind == "p_tuning":
        return PromptEncoderConfig(**common, num_virtual_tokens=tuning.virtual_tokens)
    return None


def quantisation(config: RunConfig) -> BitsAndBytesConfig | None:
    """How the frozen base is loaded: in 4 bits (NF4, 2305.14314) for QLoRA, None for all others."""
    if config.tuning.kind != "qlora":
        return None
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.tuning.double_quantisation,
        bnb_4bit_compute_dtype=loaded_dtype(config),
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
    if isinstance(model, PeftModel):
        virtual_tokens.install(model, config.tuning.kind)


def loaded_dtype(config: RunConfig) -> torch.dtype:
    """Weights that are trained are fp32, or small updates vanish; a frozen base may stay as it is stored."""
    if config.tuning.kind == "qlora":  # what is not quantised, and the products with what is
        return torch.bfloat16 if config.training.bf16 else torch.float32
    may_stay = config.training.bf16 and config.tuning.kind not in _TRAINS_FP32_WEIGHTS
    return torch.bfloat16 if may_stay and _stored(config) == torch.bfloat16 else torch.float32


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
