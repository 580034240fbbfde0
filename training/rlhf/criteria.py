"""A reward model with a score for each criterion of its ratings; the reward is their weighted sum.

While it learns its head has a row for each criterion: a rating moves its own row, a comparison all of them
by their weights. A weighted sum of linear heads is a linear head, so what is stored is a reward model with
one output, that anybody can load, and beside it `criteria.safetensors` with the head of each by its name.

Both kinds of model end in a linear layer: a causal LM in `score`, an encoder in the last of its classifier.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.rlhf.failures import Refused

FILE = "criteria.safetensors"
BIAS = ".bias"  # after a criterion's name


class Heads(NamedTuple):
    """`weight` (criteria, width) and `bias` (criteria,) of each head, `shares` (criteria,) of the reward."""

    names: list[str]
    shares: Tensor
    weight: Tensor
    bias: Tensor | None


def expand(model: Any, criteria: Mapping[str, float]) -> None:
    """Give the head a row for each criterion, all alike at first; nothing without criteria."""
    if not criteria:
        return
    head = _last(model)[2]
    rows = head.weight.detach().expand(len(criteria), -1)
    bias = None if head.bias is None else head.bias.detach().expand(len(criteria))
    _put(model, rows, bias)


def collapse(model: Any, criteria: Mapping[str, float], folder: Path) -> None:
    """Store each criterion's head in `folder`, and make the model's head their weighted sum."""
    head = _last(model)[2]
    weight = head.weight.detach().float().cpu()
    bias = None if head.bias is None else head.bias.detach().float().cpu()
    shares = torch.tensor(list(criteria.values()), dtype=torch.float32)
    tensors = {name: row.contiguous() for name, row in zip(criteria, weight, strict=True)}
    if bias is not None:
        tensors |= {f"{name}{BIAS}": one.reshape(1) for name, one in zip(criteria, bias, strict=True)}
    save_file(tensors, folder / FILE, metadata={"criteria": json.dumps(dict(criteria))})
    _put(model, (shares @ weight)[None], None if bias is None else (shares @ bias)[None])


def load(folder: str | Path) -> Heads | None:
    """The heads of a saved reward model; None where it has but one. Raises Refused for a damaged file."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            shares = json.loads((file.metadata() or {})["criteria"])
            names = list(shares)
            weight = torch.stack([file.get_tensor(name) for name in names])
            kept = set(file.keys())
            biases = [file.get_tensor(name + BIAS) for name in names if name + BIAS in kept]
        bias = torch.cat(biases) if biases else None
        return Heads(names, torch.tensor([float(shares[name]) for name in names]), weight, bias)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise Refused(
            f"These are not the heads of a reward model's criteria: {error}.",
            str(path),
            "Remove the file to read the reward alone, or train the reward model again.",
        ) from error


def widen(model: Any, heads: Heads) -> None:
    """Let a loaded reward model give its reward first, and then the score of each criterion."""
    head = _last(model)[2]
    if heads.weight.shape[1] != head.in_features or (heads.bias is None) != (head.bias is None):
        raise Refused(
            "The heads of the criteria are of another model.", FILE, "Train the reward model again."
        )
    weight = torch.cat([head.weight.detach(), heads.weight.to(head.weight)])
    bias = None if heads.bias is None else torch.cat([head.bias.detach(), heads.bias.to(head.bias)])
    _put(model, weight, bias)


def _last(model: Any) -> tuple[nn.Module, str, nn.Linear]:
    """The linear layer that a classifier ends in: what holds it, its name there, and itself.

    By its place and not by `num_labels`, which stays 1: TRL refuses a reward model with another number.
    """
    body = f"{model.base_model_prefix}."
    found = [
        (name, one)
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and not name.startswith(body)
    ]
    if not found:
        raise Refused(
            f"The head of this architecture ({model.config.model_type}) is not where it is looked for.",
            "reward_learning.criteria",
            "Leave the criteria out, or choose that one score learns them all.",
        )
    name, head = found[-1]
    parent, _, own = name.rpartition(".")
    return model.get_submodule(parent), own, head


def _put(model: Any, weight: Tensor, bias: Tensor | None) -> None:
    parent, name, head = _last(model)
    fresh = nn.Linear(head.in_features, len(weight), bias=bias is not None)
    fresh.to(device=head.weight.device, dtype=head.weight.dtype)
    with torch.no_grad():
        fresh.weight.copy_(weight)
        if bias is not None:
            fresh.bias.copy_(bias)
    fresh.train(head.training)
    setattr(parent, name, fresh)
