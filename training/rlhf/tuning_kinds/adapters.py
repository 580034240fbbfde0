"""Adapters that no plain model can hold are stored beside its weights, and put back when it is loaded.

model/                the base, a whole model that anybody can load
model/adapter.json    which kind stands beside it
model/adapter/        its weights: PEFT's files, or `adapter_model.safetensors` for bottleneck adapters

LoRA, DoRA and IA3 are merged instead, so nothing tells their models from others.
"""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from training.rlhf.model_files import ModelRefused
from training.rlhf.run_dir import write_json
from training.rlhf.tuning_kinds import bottleneck, virtual_tokens
from training.rlhf.tuning_settings import BESIDE_THE_WEIGHTS, KINDS, Tuning

MARK = "adapter.json"
FOLDER = "adapter"
FORMAT = 1
_WEIGHTS = "adapter_model.safetensors"


def detach(model: Any, tuning: Tuning, folder: Path) -> PreTrainedModel:
    """Write the adapters and their mark to a model's folder; returns the base, to be saved beside them."""
    (folder / FOLDER).mkdir(parents=True)
    write_json(
        folder / MARK,
        {"format": FORMAT, "kind": tuning.kind, "bottleneck_size": tuning.bottleneck_size},
    )
    if tuning.kind == "bottleneck":
        save_file(
            {name: weight.cpu().contiguous() for name, weight in bottleneck.weights(model).items()},
            folder / FOLDER / _WEIGHTS,
        )
        bottleneck.remove(model)
        return model
    model.save_pretrained(str(folder / FOLDER))
    base: Any = model.get_base_model()
    wrapped = getattr(base, "score", None)
    if wrapped is not None:  # a reward model's head was trained too: PEFT keeps it in a wrapper
        base.score = wrapped.modules_to_save[model.active_adapter]
    return base


def attach(model: PreTrainedModel, location: str) -> PreTrainedModel:
    """The model with the adapters that lie beside its weights; the same model where there are none."""
    kind = kind_beside(location)
    if not kind:
        return model
    folder = Path(location) / FOLDER
    if kind == "bottleneck":
        stored = load_file(folder / _WEIGHTS)
        size = next(weight.shape[0] for name, weight in stored.items() if name.endswith("down.weight"))
        bottleneck.insert(model, size=size, seed=0)
        expected = bottleneck.weights(model)
        if {name: one.shape for name, one in stored.items()} != {n: one.shape for n, one in expected.items()}:
            raise ModelRefused(
                "The adapters belong to another model.", location, "Train the model again, or copy it whole."
            )
        model.load_state_dict(stored, strict=False)
        return model.train(mode=False)
    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    virtual_tokens.install(adapted, kind)
    return adapted.eval()


def kind_beside(location: str) -> str:
    """The kind of adapters beside a model's weights, empty where there are none. Raises ModelRefused."""
    mark = Path(location) / MARK
    if not mark.is_file():
        return ""
    try:
        said = json.loads(mark.read_text(encoding="utf-8"))
        kind, version = said["kind"], said["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelRefused(f"{MARK} cannot be read: {error!r}.", location, "Copy the model again.") from error
    if version != FORMAT or kind not in BESIDE_THE_WEIGHTS:
        raise ModelRefused(
            f"{MARK} names adapters that this version does not know ({kind!r}, format {version!r}).",
            location,
            "Use the version of Ratchet that trained the model.",
        )
    # Alone in safetensors: PEFT would fall back on a pickled file, which can run code.
    if not (Path(location) / FOLDER / _WEIGHTS).is_file():
        raise ModelRefused(
            f"The model's adapters are missing ({FOLDER}/{_WEIGHTS}).", location, "Copy the model whole."
        )
    return str(kind)


def refuse_as_start(location: str) -> None:
    """Raise ModelRefused where a training would begin from a model with adapters beside its weights.

    They would be left out in silence, or trained in place of what was asked for.
    """
    kind = kind_beside(location)
    if kind:
        raise ModelRefused(
            f"What this model learnt lies beside its weights ({KINDS[kind]}) and cannot be merged into them, "
            "so no further training can begin from it. It can write, score and be evaluated.",
            location,
            "Begin from the model that it was trained from, or train it with LoRA, which is merged.",
        )
