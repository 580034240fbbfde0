"""Models of a given shape with random weights, made on the device: nothing is downloaded or stored."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from training.rlhf import loading
from training.rlhf.starter.build import SHIPPED


class Shape(NamedTuple):
    """Of a Llama: layers, width, and so on; the vocabulary's first tokens are those of the starter."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int


SHAPES = {
    "8b": Shape(32, 4096, 32, 8, 14336, 128_256),
    "65b": Shape(80, 8192, 64, 64, 22016, 32_000),
    "tiny": Shape(2, 64, 4, 2, 128, 1024),
}


def config_of(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype="bfloat16",
        eos_token_id=1,
        pad_token_id=0,
    )


def store_outline(shape: Shape, folder: Path) -> Path:
    """A folder as recipes name a model, with config and tokenizer. Its weights are a placeholder."""
    loading.load_tokenizer(str(SHIPPED)).save_pretrained(folder)
    config_of(shape).save_pretrained(folder)
    save_file({"placeholder": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def model_of(shape: Shape, device: torch.device) -> PreTrainedModel:
    """Random weights in bf16, on the device."""
    with device:
        model: Any = cast(Any, AutoModelForCausalLM).from_config(config_of(shape), dtype=torch.bfloat16)
    found: PreTrainedModel = model.eval()
    return found


def quantised_model_of(shape: Shape, device: torch.device) -> PreTrainedModel:
    """The same with its linear layers in NF4 with double quantisation, made layer by layer.

    In bf16 the whole of it would not fit: only one matrix is there before it is quantised.
    """
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    config = config_of(shape)
    with torch.device("meta"):
        model: Any = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.bfloat16)
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or module is model.lm_head:
            continue
        weight = torch.randn(module.weight.shape, device=device, dtype=torch.bfloat16) * 0.02
        layer = cast(Any, Linear4bit)(
            module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16,
            compress_statistics=True, quant_type="nf4", device="meta",
        )  # fmt: skip
        values: Any = Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
        )
        layer.weight = values.to(device)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    for name, weight in list(model.named_parameters()):
        if weight.device.type == "meta":
            parent, _, last = name.rpartition(".")
            values = torch.randn(weight.shape, device=device, dtype=torch.bfloat16) * 0.02
            one = torch.ones_like(values) if "norm" in name else values
            setattr(model.get_submodule(parent), last, nn.Parameter(one, requires_grad=False))
    rotary = model.model.rotary_emb  # its frequencies are buffers, without values on the meta device
    model.model.rotary_emb = type(rotary)(config=config).to(device)
    model.is_loaded_in_4bit = True  # PEFT asks
    found: PreTrainedModel = model.eval()
    return found
