"""Models and tokenizers from a folder or a hub id, ready to be trained, to write or to score.

Every run begins here; training.rlhf.model_files refuses what is unsafe, not whole or of the wrong kind.
"""

import os
from pathlib import Path
from typing import Any, Literal, cast

# Before transformers is imported: no telemetry, no bars in a log that people read.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.rlhf import rendering, scoring
from training.rlhf.checks import finite
from training.rlhf.model_files import ModelRefused as ModelRefused
from training.rlhf.model_files import attempt, causal_config, checked_config, is_encoder, reward_config
from training.rlhf.tuning_kinds import adapters

_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<unk>")

# The heads of encoders' classifiers, and BERT's pooler, which a model without next-sentence prediction lacks.
_ENCODER_HEADS = ("classifier.", "pre_classifier.", "pooler.", "head.", "bert.pooler.", "albert.pooler.")


def load_policy(
    location: str,
    *,
    dtype: torch.dtype = torch.float32,
    quantisation: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """A causal LM from a folder or hub id, in evaluation mode. Join it with its tokenizer by `fit`.

    Adapters that lie beside its weights are in it (training.rlhf.tuning_kinds.adapters).
    """
    config = checked_config(location)
    if any("SequenceClassification" in name for name in config.get("architectures") or []):
        raise ModelRefused(
            "This is a reward model, not a model that writes.", location, "Name the folder of a causal LM."
        )
    causal_config(location)
    model = _load_whole(AutoModelForCausalLM, location, dtype=dtype, **_quantised(quantisation))
    return adapters.attach(model, location)


def load_reward_base(
    location: str,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    quantisation: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """A policy's body under a new scalar head drawn by `seed`: where a reward model's training begins.

    Or an encoder's, which is read at its first token. A folder that already holds a reward model is loaded
    with its head.
    """
    config = reward_config(location)
    torch.manual_seed(seed)
    return _load_whole(
        AutoModelForSequenceClassification,
        location,
        dtype=dtype,
        num_labels=1,
        may_lack=_new_parts(config),
        **_quantised(quantisation),
    )


def _quantised(quantisation: BitsAndBytesConfig | None) -> dict[str, Any]:
    return {} if quantisation is None else {"quantization_config": quantisation}


def _new_parts(config: PreTrainedConfig) -> tuple[str, ...]:
    """What a sequence classifier has beside the body, by the beginnings of the names."""
    return _ENCODER_HEADS if is_encoder(config) else ("score.",)


def check_weights(location: str, *, purpose: Literal["policy", "reward_base", "reward_model"]) -> None:
    """Raise ModelRefused where the loader for this purpose would, without loading the model.

    Whether its weights are numbers is read tensor by tensor, of all but very large models. For the rest: on
    the meta device transformers compares names, shapes and lengths with the headers of the files, through the
    same renaming as in earnest. A hub id passes: its files may not be here yet.
    """
    config = causal_config(location) if purpose == "policy" else reward_config(location)
    if not Path(location).is_dir():
        return
    adapters.kind_beside(location)
    _refuse_no_numbers(attempt(location, lambda: finite.unsound_in(Path(location))), location)
    if purpose == "policy":
        _load_whole(AutoModelForCausalLM, location, device_map="meta")
    else:
        may_lack = _new_parts(config) if purpose == "reward_base" else ()
        kind = AutoModelForSequenceClassification
        _load_whole(kind, location, may_lack=may_lack, num_labels=1, device_map="meta")


def serving_dtype(location: str) -> torch.dtype:
    """The numbers in which a policy writes and is measured: on a GPU as it is stored, where others serve it.

    On a CPU fp32: it is no slower for a small model, and few kernels there know fp16.
    """
    stored = causal_config(location).dtype
    return stored if isinstance(stored, torch.dtype) and torch.cuda.is_available() else torch.float32


def load_reward_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model with its tokenizer, once its canaries score as when it was saved."""
    where = str(folder)
    checked_config(where)
    tokenizer = load_tokenizer(where)
    model = _load_whole(AutoModelForSequenceClassification, where, dtype=dtype)
    if model.config.num_labels != 1:
        raise ModelRefused(
            f"The model has {model.config.num_labels} outputs; a reward model has one.",
            where,
            "Name the folder of a reward model that Ratchet trained.",
        )
    _agree(model, tokenizer, where=where)  # and nothing new: it is read where it was trained
    model = adapters.attach(model, where)
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
    config = checked_config(location)
    tokenizer: PreTrainedTokenizerBase = attempt(
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
    """Make the model agree with its tokenizer about padding and EOS. Refuses tokens without embeddings.

    A reward model to be trained whose tokenizer pads with EOS (as GPT-2's) gets a padding token of its own:
    transformers reads the score at the last token that is not padding, so EOS would never be read.
    """
    _agree(model, tokenizer, where=where)
    if not model.can_generate() and tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": _PAD_NAMES[0]})
        if len(tokenizer) > cast(torch.Tensor, model.get_input_embeddings().weight).shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _agree(model, tokenizer, where=where)


def _agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
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


def _load_whole(
    kind: Any,
    location: str,
    *,
    dtype: torch.dtype = torch.float32,
    may_lack: tuple[str, ...] = (),
    **options: Any,
) -> PreTrainedModel:
    model, report = attempt(
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
    _refuse_no_numbers(finite.unsound(model.named_parameters()), location)
    # On a CPU that knows bf16 products bitsandbytes would pack a 4-bit layer anew, and round its scales, when
    # it is first read outside training: reading the reference would change the policy.
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    model.eval()
    return model


def _refuse_no_numbers(names: list[str], location: str) -> None:
    if names:
        raise ModelRefused(
            f"The weights hold NaN or infinity where numbers should be: {finite.in_words(names)}.",
            location,
            "Begin from another model, or from a checkpoint of before its training diverged.",
        )


def _take_eos_from(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, location: str) -> None:
    """From the config; an encoder's turns stand between its own two special tokens, read at the first."""
    if tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
        return
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

    Padding is masked everywhere, so EOS serves; only a scalar head needs another (see `fit`).
    """
    vocabulary = tokenizer.get_vocab()
    known = next((name for name in _PAD_NAMES if name in vocabulary and name != tokenizer.eos_token), None)
    if known is not None:
        tokenizer.pad_token = known
    elif max(vocabulary.values()) + 1 < embeddings:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    else:
        tokenizer.pad_token = tokenizer.eos_token
