"""How many weights a run trains, without loading one: the model and its adapters on the meta device.

The very functions that prepare a training are called, so a kind of tuning that this architecture cannot take
is refused here as well, before the start.
"""

import copy
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from training.rlhf import tuning
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.methods import METHODS
from training.rlhf.tuning_settings import KINDS


class Weights(NamedTuple):
    """Numbers of weights. What is added is new to the model, and may be trained or not."""

    whole: int  # of the model as it is loaded
    trained: int
    added: int
    quantised: int  # of the whole


def count(config: RunConfig, model_config: PretrainedConfig) -> Weights:
    """Raises Refused where this architecture cannot be tuned in this way."""
    is_policy = METHODS[config.method].makes == "policy"
    task = "CAUSAL_LM" if is_policy else "SEQ_CLS"
    own_config = copy.deepcopy(model_config)  # which a model of its own changes
    own_config.num_labels = 1
    kind: Any = AutoModelForCausalLM if is_policy else AutoModelForSequenceClassification
    with torch.device("meta"):
        model: Any = kind.from_config(own_config)
        whole = _all(model)
        quantised = _quantised(model) if config.tuning.kind == "qlora" else 0
        tuning.prepare(model, config)
        adapters = tuning.peft_config(config, task=task)
        if adapters is not None:
            # On the meta device there is no vocabulary to begin at.
            if hasattr(adapters, "prompt_tuning_init"):
                adapters.prompt_tuning_init = "RANDOM"
            try:
                model = get_peft_model(model, adapters)
            except ValueError as error:
                raise Refused(
                    f"{KINDS[config.tuning.kind]} does not know this architecture "
                    f"({model_config.model_type}): {str(error).splitlines()[0][:200]}",
                    "tuning.kind",
                    "Choose LoRA on all linear layers, or all weights.",
                ) from error
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return Weights(whole, trained, _all(model) - whole, quantised)


def _all(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _quantised(model: Any) -> int:
    """What bitsandbytes quantises: every linear layer but the head."""
    head = model.get_output_embeddings() if model.can_generate() else model.get_submodule("score")
    return sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
