"""Models and tokenizers from a folder or a hub id: safetensors only, no foreign code, nothing half-loaded.

Every run begins here. What cannot be loaded safely and whole is refused by `ModelRefused`, which says what
is wrong, where, and what to do; the child writes that to `error.json`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

# Before transformers is imported: no telemetry, no bars in a log that people read.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from training.rlhf import rendering, scoring
from training.rlhf.config import HUB_ID
from training.rlhf.failures import Refused

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# A trainer leaves these beside a model; they hold no weights and nothing here reads them.
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<unk>")


class ModelRefused(Refused):
    """A model that is not loaded: what is wrong, where, and what to do about it."""


def load_policy(location: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal LM from a folder or hub id, in evaluation mode. Join it with its tokenizer by `fit`."""
    config = _checked_config(location)
    if any("SequenceClassification" in name for name in config.get("architectures") or []):
        raise ModelRefused(
            "This is a reward model, not a model that writes.", location, "Name the folder of a causal LM."
        )
    return _load_whole(AutoModelForCausalLM, location, dtype=dtype)


def load_reward_base(location: str, *, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A policy's body under a new scalar head drawn by `seed`: where a reward model's training begins.

    A folder that already holds a reward model is loaded with its head.
    """
    _checked_config(location)
    torch.manual_seed(seed)
    return _load_whole(
        AutoModelForSequenceClassification, location, dtype=dtype, num_labels=1, may_lack=("score.",)
    )


def load_reward_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model with its tokenizer, once its canaries score as when it was saved."""
    where = str(folder)
    _checked_config(where)
    tokenizer = load_tokenizer(where)
    model = _load_whole(AutoModelForSequenceClassification, where, dtype=dtype)
    if model.config.num_labels != 1:
        raise ModelRefused(
            f"The model has {model.config.num_labels} outputs; a reward model has one.",
            where,
            "Name the folder of a reward model that Ratchet trained.",
        )
    fit(model, tokenizer, where=where)
    try:
        scoring.check_canaries(model, tokenizer, folder=Path(where))
    except scoring.CanaryMismatch as error:
        raise ModelRefused(
            str(error),
            where,
            "Its files or the library versions changed since it was trained: train the reward model again.",
        ) from error
    return model, tokenizer


def load_tokenizer(location: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with EOS, a padding token and a chat template; pads on the right."""
    config = _checked_config(location)
    tokenizer: PreTrainedTokenizerBase = _attempt(
        location, lambda: AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    )
    if tokenizer.eos_token_id is None:
        _take_eos_from(config, tokenizer, location)
    if tokenizer.pad_token_id is None:
        _choose_pad(tokenizer, embeddings=int(config.get("vocab_size") or 0))
    tokenizer.padding_side = "right"
    rendering.ensure_template(tokenizer)
    return tokenizer


def fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
    """Make the model agree with its tokenizer about padding and EOS. Refuses tokens without embeddings."""
    rows = cast(torch.Tensor, model.get_input_embeddings().weight).shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelRefused(
            f"The tokenizer knows tokens up to number {highest}, but the model has only {rows} embeddings.",
            where,
            "Use the tokenizer that the model was trained with, or resize and train the embeddings.",
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.config.eos_token_id is None:
        model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def use_device(model: torch.nn.Module) -> None:
    """Move a model to where it runs: the GPU, if this machine has one."""
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _checked_config(location: str) -> dict[str, Any]:
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
    config: dict[str, Any] = _attempt(location, lambda: PreTrainedConfig.get_config_dict(location)[0])
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


def _load_whole(
    kind: Any, location: str, *, dtype: torch.dtype, may_lack: tuple[str, ...] = (), **options: Any
) -> PreTrainedModel:
    model, report = _attempt(
        location,
        lambda: kind.from_pretrained(
            location,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        ),
    )
    # transformers fills what is missing with random numbers, and only warns.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(may_lack or ("\0",)))
    if missing:
        raise ModelRefused(
            f"The weights lack {len(missing)} of the model's tensors ({', '.join(missing[:3])}).",
            location,
            "Name a model that was saved whole.",
        )
    model.eval()
    return model


def _attempt(location: str, load: Callable[[], Any]) -> Any:
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


def _take_eos_from(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, location: str) -> None:
    declared = config.get("eos_token_id")
    first = declared[0] if isinstance(declared, list) and declared else declared
    token = tokenizer.convert_ids_to_tokens(first) if isinstance(first, int) else None
    if not isinstance(token, str):
        raise ModelRefused(
            "The tokenizer has no EOS token, so the model could never stop.",
            location,
            "Set eos_token in tokenizer_config.json.",
        )
    tokenizer.eos_token = token


def _choose_pad(tokenizer: PreTrainedTokenizerBase, *, embeddings: int) -> None:
    """A padding token without resizing: one that is there, a new one where a row is free, else EOS.

    Padding is masked everywhere, so EOS serves; but a token of its own keeps EOS visible to a scalar head.
    """
    vocabulary = tokenizer.get_vocab()
    known = next((name for name in _PAD_NAMES if name in vocabulary and name != tokenizer.eos_token), None)
    if known is not None:
        tokenizer.pad_token = known
    elif max(vocabulary.values()) + 1 < embeddings:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    else:
        tokenizer.pad_token = tokenizer.eos_token
