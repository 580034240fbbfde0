"""A stored model in another form: all floating-point weights in bf16 or fp32, or its adapter alone.

What people judged is the model as it is stored, so bf16 to fp32 is exact, and fp32 to bf16 rounds once, to
the nearest even. Whoever wants the sum of base and adapter before it was rounded takes the adapter. Files
are gone through one at a time: memory is needed for one of them, twice.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from training.rlhf import loading
from training.rlhf.failures import Refused
from training.rlhf.run_dir import LeaveJob

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WEIGHTS = ("model.safetensors", "model-")  # a head of ours beside them stays as it is
_OF_THE_TOKENIZER = ("tokenizer", "chat_template", "special_tokens", "vocab", "merges", "added_tokens")


def write(job: LeaveJob, target: Path, *, tell: Callable[[float], None]) -> None:
    """Fill an empty folder. `tell` hears the share that is done. Raises Refused."""
    model = Path(job["model"])
    if job["form"] == "adapter":
        _copy(Path(job["adapter"]), target, leave_out=job["leave_out"])
        for path in sorted(model.glob("*")):
            if path.name.startswith(_OF_THE_TOKENIZER) and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
    else:
        dtype = DTYPES.get(job["form"])
        names = [path.name for path in sorted(model.glob("*.safetensors")) if path.name.startswith(_WEIGHTS)]
        _copy(model, target, leave_out=[*job["leave_out"], *(names if dtype else [])])
        if dtype is not None:
            _convert(model, target, names, dtype, tell)
        _set_right(target / "config.json", dtype)
    for settings in target.rglob("adapter_config.json"):
        _edit(settings, base_model_name_or_path=job["base"])
    for name, text in job["texts"].items():
        (target / name).write_text(text, encoding="utf-8")
    tell(1.0)


def check(job: LeaveJob, folder: Path) -> None:
    """Raise Refused where a loader would stumble over what was written."""
    if job["form"] != "adapter":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        scores = any("SequenceClassification" in name for name in config.get("architectures") or [])
        loading.check_weights(str(folder), purpose="reward_model" if scores else "policy")
    elif not (folder / "adapter_config.json").is_file():
        raise Refused("The adapter has no adapter_config.json.", job["adapter"], "Train the model again.")


def _copy(source: Path, target: Path, *, leave_out: list[str]) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and path.name not in leave_out and not path.name.startswith("."):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _convert(
    model: Path, target: Path, names: list[str], dtype: torch.dtype, tell: Callable[[float], None]
) -> None:
    total, done, size = sum((model / name).stat().st_size for name in names), 0, 0
    for name in names:
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(model / name, framework="pt") as file:
            metadata = file.metadata() or {"format": "pt"}
            for key in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_tensor(key)
                _refuse_packed(tensor, key, model)
                tensors[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        save_file(tensors, target / name, metadata=metadata)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        done += (model / name).stat().st_size
        tell(0.95 * done / max(total, 1))
    for index in target.glob("model.safetensors.index.json"):
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["metadata"] = {**listed.get("metadata", {}), "total_size": size}
        index.write_text(json.dumps(listed, indent=2), encoding="utf-8")


def _refuse_packed(tensor: torch.Tensor, key: str, model: Path) -> None:
    if tensor.dtype in (torch.uint8, torch.int8) and key.endswith("weight"):
        raise Refused(
            f"{key} is stored in packed numbers ({tensor.dtype}), which cannot be rewritten.",
            str(model),
            "Take it as it is stored.",
        )


def _set_right(path: Path, dtype: torch.dtype | None) -> None:
    """config.json: the type of its numbers, a cache for those who write with it, no place on this machine."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("_name_or_path", None)
        if dtype is not None:
            part.pop("torch_dtype", None)
            if part is config or "dtype" in part:
                part["dtype"] = str(dtype).removeprefix("torch.")
    if "use_cache" in config:  # a trainer turns it off
        config["use_cache"] = True
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _edit(path: Path, **values: Any) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}, indent=2) + "\n", encoding="utf-8")
