"""Bottleneck adapters: two small layers after each attention and each MLP (Houlsby et al., 1902.00751).

PEFT has none. An adapter is a submodule of the sublayer that it follows, and acts on what that returns,
before the residual connection: section 2.1 of the paper. It begins as the identity, so a policy with new
adapters is its own reference.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.rlhf.failures import Refused

NAME = "bottleneck"
# What transformers calls the two sublayers. OPT has no module for its MLP: the second of its layers ends it.
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))), of [..., width] to [..., width]; `up` begins at 0."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        nn.init.normal_(self.down.weight, std=0.01)
        for begins_at_zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(begins_at_zero)

    def forward(self, states: Tensor) -> Tensor:
        changed: Tensor = states + self.up(nn.functional.gelu(self.down(states)))
        return changed


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a decoder, from below. Raises Refused where they cannot be found."""
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise Refused(
        f"The layers of this architecture ({config.model_type}) are not where they are looked for.",
        "tuning.kind",
        "Choose LoRA or all weights.",
    )


def insert(model: PreTrainedModel, *, size: int, seed: int) -> None:
    """Put an adapter behind each attention and each MLP, in the model's numbers and on its device.

    Raises Refused where a layer's two sublayers are not told apart.
    """
    width = model.config.get_text_config().hidden_size
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        for layer in layers_of(model):
            for sublayer in _sublayers(layer, model.config.model_type):
                adapter = Bottleneck(width, size).to(device=model.device, dtype=model.dtype)
                sublayer.add_module(NAME, adapter)
                # PyTorch keeps the handle; `remove` finds the hook by its function.
                sublayer.register_forward_hook(_through_adapter)


def _sublayers(layer: nn.Module, model_type: str) -> list[nn.Module]:
    children = dict(layer.named_children())
    found = [
        next((children[name] for name in names if name in children), None) for names in (_ATTENTION, _MLP)
    ]
    whole = [module for module in found if module is not None]
    if len(whole) != len(found):
        raise Refused(
            f"Bottleneck adapters do not know the sublayers of this architecture ({model_type}).",
            "tuning.kind",
            "Choose LoRA or all weights.",
        )
    return whole


def _through_adapter(module: Any, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # attention also returns its weights
        return (module.bottleneck(output[0]), *output[1:])
    return module.bottleneck(output)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by their names in the model."""
    return {name: weight.detach() for name, weight in model.named_parameters() if _is_adapter(name)}


def remove(model: nn.Module) -> None:
    """Take the adapters out again: what is left is the model as it was loaded."""
    for module in list(model.modules()):
        if NAME in dict(module.named_children()):
            delattr(module, NAME)
            hooks = module._forward_hooks
            for key in [key for key, hook in hooks.items() if hook is _through_adapter]:
                del hooks[key]


def _is_adapter(name: str) -> bool:
    return f".{NAME}." in name
