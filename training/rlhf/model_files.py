"""A model's folder or hub id before its weights are read: safetensors only, no foreign code, causal, whole.

What cannot be loaded safely and whole is refused by `ModelRefused`, which says what is wrong, where, and what
to do; the child writes that to `error.json`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from training.rlhf.config import HUB_ID
from training.rlhf.failures import Refused

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# RoBERTa and its kin begin to count after the position of padding (create_position_ids_from_input_ids).
_COUNTS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert",
                         "data2vec-text", "mpnet", "longformer")  # fmt: skip
# A trainer leaves these beside a model; they hold no weights and nothing here reads them.
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")


class ModelRefused(Refused):
    """A model that is not loaded: what is wrong, where, and what to do about it."""


def checked_config(location: str) -> dict[str, Any]:
    """The model's config.json, after the checks that need no weights. Raises ModelRefused."""
    folder = Path(location)
    if folder.is_dir():
        _check_folder(folder)
    elif folder.exists():
        raise ModelRefused("This is a file, not a model's folder.", location, "Name its folder.")
    elif not HUB_ID.fullmatch(location):
        raise ModelRefused(
            "There is no such folder, and it is no hub id.", location, "Check the spelling of the location."
        )
    config: dict[str, Any] = attempt(location, lambda: PreTrainedConfig.get_config_dict(location)[0])
    if not isinstance(config, dict) or not config:
        raise ModelRefused(
            "config.json describes no model.", location, "Name a model in Hugging Face's layout."
        )
    if "auto_map" in config:
        raise ModelRefused(
            "The model brings its own code (auto_map in config.json), which is never run here.",
            location,
            "Use a model of an architecture that transformers knows.",
        )
    return config


def _check_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    pickled = sorted(name for name in names if name.endswith(_PICKLED) and not name.startswith(_NOT_WEIGHTS))
    if pickled:
        raise ModelRefused(
            f"The folder holds pickled weights ({', '.join(pickled[:3])}), which can run code when loaded.",
            str(folder),
            "Keep only the .safetensors files; convert the weights if there are none.",
        )
    if "config.json" not in names:
        adapter = "adapter_config.json" in names
        raise ModelRefused(
            "This is an adapter without its base model." if adapter else "The folder holds no config.json.",
            str(folder),
            "Merge the adapter into its base model." if adapter else "Name a model in Hugging Face's layout.",
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelRefused(
            "The folder holds no weights in safetensors.",
            str(folder),
            "Name a folder that holds config.json and model.safetensors.",
        )


def positions(config: PreTrainedConfig) -> int:
    """How many tokens the model can tell apart by their place; a large number where there is no limit."""
    text = config.get_text_config()
    places = getattr(text, "max_position_embeddings", None) or 1_000_000
    return int(places) - (int(text.pad_token_id or 0) + 1 if text.model_type in _COUNTS_AFTER_PADDING else 0)


def is_encoder(config: PreTrainedConfig) -> bool:
    """Does each token see those after it? As a reward model it is read at its first token, not its last."""
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return masked and not config.is_encoder_decoder and not getattr(config, "is_decoder", False)


def causal_config(location: str) -> PreTrainedConfig:
    """The config of a model that reads from left to right. Raises ModelRefused for any other.

    An encoder sees the token that it should predict, so it would be trained to copy and could not write.
    transformers gives BERT a causal head all the same, and only warns.
    """
    config = reward_config(location)
    if is_encoder(config):
        raise _cannot_write("an encoder", config, location)
    return config


def reward_config(location: str) -> PreTrainedConfig:
    """The config of a model that a reward model can begin from: one that writes, or an encoder."""
    checked_config(location)
    config: PreTrainedConfig = attempt(
        location, lambda: AutoConfig.from_pretrained(location, trust_remote_code=False)
    )
    if config.is_encoder_decoder:
        raise _cannot_write("an encoder with a decoder", config, location)
    return config


def _cannot_write(kind: str, config: PreTrainedConfig, location: str) -> ModelRefused:
    return ModelRefused(
        f"This is {kind} ({config.model_type}), not a model that writes from left to right.",
        location,
        "Name a causal language model, for example of the families Llama, Qwen, Gemma or GPT-2.",
    )


def attempt(location: str, load: Callable[[], Any]) -> Any:
    """Run a loader of transformers and say in our words what went wrong."""
    try:
        return load()
    except SafetensorError as error:
        raise ModelRefused(
            f"The weights cannot be read: {error}.", location, "Copy or download the model again."
        ) from error
    # transformers raises whatever its parsers meet: a torn JSON file, a wrong shape, an unknown architecture.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        if Path(location).is_dir():
            raise ModelRefused(
                f"The model cannot be loaded: {reason}", location, "Check that the folder was copied whole."
            ) from error
        raise ModelRefused(
            f"The model cannot be fetched from the hub: {reason}",
            location,
            "Check the name and the connection, or name a local folder. Offline, only cached models load.",
        ) from error
