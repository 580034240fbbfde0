"""Weights that are no numbers: NaN and infinity in a model's files or in a checkpoint.

One of them makes everything that the model computes NaN, in silence while it writes and hours later while it
learns. A sum tells it as surely as a look at each, in one pass and without a copy.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from training.rlhf.failures import Refused

LARGEST = 4_000_000_000  # bytes that a check reads; a larger model is looked at when it is loaded


def is_sound(weight: Tensor) -> bool:
    """Are all of them finite? fp32 sums up any bf16 and fp16; the sum of huge fp32 is looked at once more."""
    if weight.is_meta or not weight.is_floating_point():
        return True
    if bool(torch.isfinite(weight.detach().sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(weight.detach()).all())


def unsound(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of those that hold anything but numbers."""
    return [name for name, weight in weights if not is_sound(weight)]


def unsound_in(folder: Path) -> list[str]:
    """The same of a model's files, tensor by tensor; nothing for files beyond LARGEST altogether."""
    files = sorted(folder.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > LARGEST:
        return []
    found = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            found += unsound((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    return found


def in_words(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def refuse_checkpoint(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Raise Refused for a checkpoint to go on from whose weights are no numbers."""
    if names := unsound(weights):
        raise Refused(
            f"The checkpoint holds NaN or infinity where numbers should be: {in_words(names)}.",
            str(folder),
            "Remove its folder: the run then goes on from the checkpoint before it, or begins anew.",
        )
