"""What PEFT leaves open where virtual tokens stand before a text: places in it, and where a score is read.

PEFT drops `position_ids` for prefix and prompt tuning. A model then counts the padding on the left of a
batch, so that what a policy writes would depend on its neighbours; here places follow from the mask. And
given embeddings, transformers reads a reward model's score at the last place of a row, maybe padding: here
that place holds the state of the last token. Both are hooks, and act in training, sampling and scoring alike.
"""

import inspect
from typing import Any

import torch
from peft import PeftModel

from training.rlhf.tuning_settings import PREFIXES, VIRTUAL_TOKENS, Tuning


def room(tuning: Tuning) -> int:
    """How many of a model's positions this kind of tuning takes."""
    return tuning.virtual_tokens if tuning.kind in VIRTUAL_TOKENS else 0


def count(model: Any) -> int:
    """How many virtual tokens stand before every text of this model."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def install(model: PeftModel, kind: str) -> None:
    """Add the hooks that this kind needs; nothing for kinds without virtual tokens."""
    if kind not in VIRTUAL_TOKENS:
        return
    base: Any = model.get_base_model()
    if "position_ids" in inspect.signature(type(base).forward).parameters:
        base.register_forward_pre_hook(_places_by_mask, with_kwargs=True)
    if not base.can_generate() and kind not in PREFIXES:  # a prefix comes with input_ids
        getattr(base, base.base_model_prefix).register_forward_hook(_last_token_last, with_kwargs=True)


def _places_by_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    mask = kwargs.get("attention_mask")  # [rows, virtual tokens and text]
    if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
        given = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        places = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        kwargs["position_ids"] = places[:, -given.shape[1] :]
    return args, kwargs


def _last_token_last(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    if kwargs.get("inputs_embeds") is not None and kwargs.get("attention_mask") is not None:
        states = output.last_hidden_state  # [rows, virtual tokens and text, width]
        last = kwargs["attention_mask"].long().cumsum(dim=1).argmax(dim=1)
        read = states[torch.arange(len(states), device=states.device), last]
        output.last_hidden_state = torch.cat([states[:, :-1], read[:, None]], dim=1)
    return output
