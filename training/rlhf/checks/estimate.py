"""A guess at memory and time, made before a run: good to a factor of two, and marked as a guess.

Bytes and operations for a parameter are those of lessons-training.md; how fast this machine multiplies is
measured, a tenth of a second long. The evaluation is in it: for a large policy on a CPU it takes longest.
"""

import os
import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
from transformers import PretrainedConfig

from training.rlhf import mixture
from training.rlhf.checks import disk, workload
from training.rlhf.config import RunConfig
from training.rlhf.data import Row
from training.rlhf.methods import METHODS
from training.rlhf.model_files import positions
from training.rlhf.rows import held_out
from training.rlhf.rows.door import Message
from training.rlhf.rows.held_out import HeldOut
from training.rlhf.tuning_kinds import trained_share, virtual_tokens
from training.rlhf.tuning_kinds.trained_share import Weights

# Forward and backward are 6 operations for a parameter and token, of a frozen base 4; DPO reads the reference
# once before.
ADAPTER_OPERATIONS = 4
READING_OPERATIONS = 2  # forward only: the reference, held-out rows, sampling
ADAM_BYTES = 16  # fp32 weight, gradient and two moments
NF4_BYTES = 0.52  # a quantised weight, with its share of the scales
USE_OF_PEAK = 0.4  # the best stacks reach 40 to 46 % of what their matrix products alone could do
PROCESS_BYTES = 700_000_000  # torch and its friends in main memory, before any weight
SECONDS_OF_A_STEP = 0.02  # optimiser, logging and Python, whatever the size
SECONDS_OF_A_LAYER = 0.001  # that writes one token for a batch, whatever the size
SECONDS_OF_START = 8.0  # importing torch and trl, loading weights


def length_limit(config: RunConfig, model_config: PretrainedConfig) -> int:
    """Tokens that a conversation may have: by the recipe, and by the positions that the model knows."""
    return min(config.training.max_length, positions(model_config) - virtual_tokens.room(config.tuning))


def row_limit(table: str, config: RunConfig, model_config: PretrainedConfig) -> int:
    """Tokens that a row of a table may have: a prompt needs room for what is written after it."""
    return (held_out.limit_of if mixture.table_of(table) == "prompts" else length_limit)(config, model_config)


def of(
    config: RunConfig,
    model_config: PretrainedConfig,
    train: list[Row],
    test: list[Row],
    prompts: HeldOut | None,
    *,
    count_tokens: Callable[[list[Message]], int],
) -> dict[str, Any]:
    """Steps, memory and time of a run over these rows, its evaluation included."""
    weights = trained_share.count(config, model_config)
    parameters = weights.whole
    block = length_limit(config, model_config)
    read, unseen = (workload.lengths_of(rows, count_tokens, block=block) for rows in (train, test))
    work = workload.of(config, read)
    lengths = work.lengths
    steps = _steps(config, work)
    training = config.training
    once = sum(map(sum, lengths))
    tokens = steps * work.at_once * once / len(lengths)
    operations = (_operations(config, weights) + work.extra) * parameters * tokens
    # DPO reads every row with the reference first; a reward model its held-out rows twice, loss and score.
    reading = once * (config.method == "dpo") + 2 * sum(map(sum, unseen))
    operations += READING_OPERATIONS * parameters * reading
    rate = _measured_rate(bf16=bool(training.bf16)) * USE_OF_PEAK
    seconds = SECONDS_OF_START + operations / rate
    seconds += steps * training.gradient_accumulation * SECONDS_OF_A_STEP
    writing = _seconds_of_writing(config, model_config, prompts, parameters=parameters, rate=rate)
    texts = max(len(row) for row in lengths) * training.batch_size
    longest = max(map(max, lengths)) + virtual_tokens.room(config.tuning)
    memory = _weights(config, model_config, weights) + _activations(
        model_config, tokens=texts * longest, bf16=bool(training.bf16),
        checkpointing=training.gradient_checkpointing,
    )  # fmt: skip
    memory = max(memory, _memory_of_writing(config, model_config, prompts, parameters=parameters))
    if config.tuning.kind == "qlora" and not torch.cuda.is_available():
        memory += 4 * parameters  # the adapters are merged into the whole base, beside the quantised one
    memory += 0 if torch.cuda.is_available() else PROCESS_BYTES
    return {
        "is_a_guess": True,
        "device": _device_name(),
        "parameters": parameters,
        "trained_parameters": weights.trained,
        "steps": steps,
        "tokens": int(tokens),
        "seconds": round(seconds + writing, 1),
        "evaluation_seconds": round(writing, 1),
        "memory_bytes": int(memory),
        "memory_available_bytes": _available(),
        "disk": disk.need(config, model_config, weights, steps=steps)._asdict(),
    }


def of_writing(
    config: RunConfig, model_config: PretrainedConfig, *, batches: Sequence[Sequence[int]], steps: int
) -> dict[str, Any]:
    """Memory and time of a run that only writes: of each batch, how many tokens stand before each text.

    As if every text were as long as it may be. What a server takes to answer is not in it.
    """
    text, new = model_config.get_text_config(), config.sampling.max_new_tokens
    parameters = trained_share.count(config, model_config).whole
    stored = model_config.dtype if torch.cuda.is_available() else torch.float32
    width = stored.itemsize if isinstance(stored, torch.dtype) else 4
    tokens = sum(sum(batch) + new * len(batch) for batch in batches)
    written = sum(ceil(len(batch) / config.sampling.batch_size) for batch in batches) * new
    seconds = SECONDS_OF_START + written * text.num_hidden_layers * SECONDS_OF_A_LAYER
    seconds += READING_OPERATIONS * parameters * tokens / (_measured_rate(bf16=width == 2) * USE_OF_PEAK)
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    cached = 2 * text.num_hidden_layers * head * (getattr(text, "num_key_value_heads", None) or heads)
    at_once = min(max(map(len, batches)), config.sampling.batch_size)
    longest = min(max(map(max, batches)) + new, positions(model_config))
    memory = parameters * width + at_once * (longest * cached * width + 3 * 4 * text.vocab_size)
    memory += 0 if torch.cuda.is_available() else PROCESS_BYTES
    return {
        "is_a_guess": True,
        "device": _device_name(),
        "parameters": parameters,
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "memory_bytes": int(memory),
        "memory_available_bytes": _available(),
    }


def _seconds_of_writing(
    config: RunConfig,
    model_config: PretrainedConfig,
    prompts: HeldOut | None,
    *,
    parameters: int,
    rate: float,
) -> float:
    """Until two policies wrote to the held-out prompts, as long as they may, and both texts were read."""
    if prompts is None or not prompts.prompts:
        return 0.0
    count, new = min(len(prompts.prompts), held_out.MOST), config.sampling.max_new_tokens
    tokens = count * (prompts.tokens / len(prompts.prompts) + new)
    # Two policies write, both read what the new one wrote; a reward model, if there is one, reads both.
    passes = 4 + 2 * bool(config.reward_model)
    layers = model_config.get_text_config().num_hidden_layers
    batches = 2 * ceil(count / config.sampling.batch_size)
    return READING_OPERATIONS * parameters * tokens * passes / rate + (
        batches * new * layers * SECONDS_OF_A_LAYER
    )


def _memory_of_writing(
    config: RunConfig, model_config: PretrainedConfig, prompts: HeldOut | None, *, parameters: int
) -> float:
    """One policy, and what is larger: keys and values of what it writes, or logits of what it reads."""
    if prompts is None or not prompts.prompts:
        return 0.0
    text = model_config.get_text_config()
    stored = model_config.dtype if torch.cuda.is_available() else torch.float32
    width = stored.itemsize if isinstance(stored, torch.dtype) else 4
    rows = min(len(prompts.prompts), held_out.MOST)
    length = min(prompts.longest, prompts.limit) + config.sampling.max_new_tokens
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    cached = 2 * text.num_hidden_layers * head * (getattr(text, "num_key_value_heads", None) or heads)
    writing = min(rows, config.sampling.batch_size) * (length * cached * width + 3 * 4 * text.vocab_size)
    reading = length * text.vocab_size * (min(rows, config.training.batch_size) * width + 2 * 4)
    return parameters * width + max(writing, reading)


def _steps(config: RunConfig, work: workload.Workload) -> int:
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    if METHODS[config.method].draws:
        return ceil(max(1, ceil(work.rows / work.at_once)) * training.epochs)
    batches = ceil(work.rows / training.batch_size)
    per_epoch = max(1, ceil(batches / training.gradient_accumulation))
    return ceil(per_epoch * training.epochs)


def _weights(config: RunConfig, model_config: PretrainedConfig, weights: Weights) -> float:
    """Bytes of the weights, and of gradients and moments of those that are trained.

    What is not trained is fp32, or as it is stored beside adapters (training.rlhf.tuning.loaded_dtype).
    """
    kind, bf16 = config.tuning.kind, bool(config.training.bf16)
    stays_bf16 = kind not in ("full", "head", "freeze") and bf16
    width = 2 if stays_bf16 and (model_config.dtype == torch.bfloat16 or kind == "qlora") else 4
    loaded = width * (weights.whole - weights.quantised) + NF4_BYTES * weights.quantised
    return loaded + 4 * weights.added + (ADAM_BYTES - 4) * weights.trained


def _operations(config: RunConfig, weights: Weights) -> float:
    """For a parameter and token: 2 forward, 2 for what reaches the weights' inputs, 2 for the weights.

    Where the lower part of the model is frozen, the backward pass ends there.
    """
    if config.tuning.kind in ("full", "head", "freeze"):
        return READING_OPERATIONS + 4 * weights.trained / weights.whole
    return ADAPTER_OPERATIONS


def _activations(config: PretrainedConfig, *, tokens: int, bf16: bool, checkpointing: bool) -> float:
    """What the backward pass keeps: about 17 numbers for a hidden unit, layer and token (2205.05198)."""
    text = config.get_text_config()
    width = 2 if bf16 else 4
    layers = 1 + text.num_hidden_layers / 17 if checkpointing else text.num_hidden_layers
    return tokens * (17 * layers * text.hidden_size + text.vocab_size) * width


def _measured_rate(*, bf16: bool) -> float:
    """Operations per second of a large matrix product on the device that will train; the best of several.

    On a machine that others use the mean tells of their work: it made a run of 82 s an estimate of 415 s.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 512
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    square @ square  # the first one also loads kernels
    best, until = float("inf"), time.perf_counter() + 0.1
    while (started := time.perf_counter()) < until:
        square @ square
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _available() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"
