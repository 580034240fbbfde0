"""What can be known before a run costs anything: `python -m training.rlhf RUN_DIR --preflight`.

Reads the tokenizer, the model's config, the headers of its weights and every row, but no weights. Answers the
complaints that people bring to trainers (lessons-training.md): rows that vanish in silence, models that never
stop, two BOS tokens, prompts that leak across the split, memory that runs out after an hour.
"""

import json
import traceback
from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from training.rlhf import disk, failures, learners, loading, rendering, sampling
from training.rlhf.checks import estimate
from training.rlhf.config import RunConfig
from training.rlhf.data import Element, Row
from training.rlhf.methods import METHODS
from training.rlhf.model_files import causal_config, positions, reward_config
from training.rlhf.progress import Cancelled
from training.rlhf.rows import held_out, row_checks
from training.rlhf.rows.door import Message
from training.rlhf.rows.held_out import HeldOut
from training.rlhf.run_dir import EXIT_REFUSED, Preflight, RunDir, RunError
from training.rlhf.tuning_kinds import adapters


def check(run_dir: RunDir, config: RunConfig) -> Preflight:
    """The content of preflight.json. Never raises but for a stop: what goes wrong is an error in it."""
    try:
        return _check_sampling(run_dir, config) if config.method == "sample" else _check(run_dir, config)
    except Cancelled:
        raise
    except Exception as error:
        explained, code = failures.explain(error, run_dir=run_dir)
        if code != EXIT_REFUSED:  # nobody foresaw it: whoever looks into it needs the trace
            traceback.print_exception(error)
        return _answer(errors=[explained])


def _check(run_dir: RunDir, config: RunConfig) -> Preflight:
    adapters.refuse_as_start(config.model)
    tokenizer = loading.load_tokenizer(config.model)
    makes_policy = METHODS[config.method].makes == "policy"
    model_config = (causal_config if makes_policy else reward_config)(config.model)
    errors = _vocabulary_errors(tokenizer, model_config, where=config.model)
    if not errors:
        loading.check_weights(config.model, purpose="policy" if makes_policy else "reward_base")
    if makes_policy and config.reward_model:
        loading.load_tokenizer(config.reward_model)
        loading.check_weights(config.reward_model, purpose="reward_model")

    count_tokens = _counter(tokenizer)
    limit = estimate.length_limit(config, model_config)
    parts = row_checks.read_parts(
        run_dir,
        config,
        limit_of=lambda table: estimate.row_limit(table, config, model_config),
        count_tokens=count_tokens,
    )
    train, test = (row_checks.of_split(parts, split) for split in ("train", "test"))
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for (table, split), part in parts.items():
        rows.setdefault(table, {})[split] = row_checks.figures(part)
    prompts = held_out.read(run_dir, config, tokenizer, model_config) if makes_policy else None
    if prompts:
        rows.setdefault("prompts", {})["test"] = _prompt_figures(prompts)
    errors += row_checks.errors(parts, train, config=config, run_dir=run_dir, limit=limit)
    errors += learners.row_errors(config, train, run_dir=run_dir)
    needed, cautions = learners.setting_errors(config, tokenizer, run_dir=run_dir)
    errors += needed
    errors += _prompt_errors(prompts, config) + _template_errors(tokenizer, config)
    guess = {}
    if train:
        guess = estimate.of(config, model_config, train, test, prompts, count_tokens=count_tokens)
        wanted, there = disk.Need(**guess["disk"]), disk.free(run_dir.path)
        guess |= {"disk_bytes": wanted.bytes, "disk_available_bytes": there}
        errors += disk.errors(wanted, there=there, run_dir=run_dir)
    sample = _sample(train)
    said = {error["what"] for error in errors}
    return _answer(
        errors=errors,
        warnings=[
            *(problem for problem in rendering.template_problems(tokenizer) if problem not in said),
            *row_checks.warnings(train, test, prompts, parts=parts, limit=limit, config=config),
            *_prompt_warnings(prompts),
            *cautions,
            *_memory_warnings(guess),
        ],
        rows=rows,
        template=_template(tokenizer, sample),
        estimate=guess,
    )


def _sample(train: list[Row]) -> list[Message] | None:
    """The conversation that people see as the model will: of a comparison, the preferred one."""
    first = next((row for row in train if row.conversations()), None)
    if first is None:
        return None
    return first.conversations()[first.comparisons[0].chosen if isinstance(first, Element) else 0]


def _check_sampling(run_dir: RunDir, config: RunConfig) -> Preflight:
    """Every policy can be loaded and its template takes every prompt that it is asked for."""
    requests = sampling.read_requests(run_dir, config)
    warnings = []
    for name, location in config.policies.items():
        tokenizer = loading.load_tokenizer(location)
        loading.check_weights(location, purpose="policy")
        room = positions(causal_config(location)) - config.sampling.max_new_tokens
        asked = [request["prompt"] for request in requests if name in request["policies"]]
        cut = sum(len(rendering.prompt_ids(tokenizer, prompt)) > room for prompt in asked)
        if cut:
            warnings.append(f"Policy {name} reads only the end of {cut} prompts: they exceed its positions.")
    return _answer(warnings=warnings)


def _prompt_figures(prompts: HeldOut) -> dict[str, int]:
    return {
        "kept": len(prompts.prompts),
        "dropped": prompts.dropped,
        "longest": prompts.longest,
        "ties": 0,
    }


def _prompt_errors(prompts: HeldOut | None, config: RunConfig) -> list[RunError]:
    if prompts is None or prompts.prompts or not prompts.dropped:
        return []
    return [
        RunError(
            what=f"None of the {prompts.dropped} held-out prompts can be used: {prompts.too_long} are longer "
            f"than {prompts.limit} tokens, the chat template refuses {prompts.refused}.",
            where=held_out.FILE,
            do=f"Lower max_new_tokens ({config.sampling.max_new_tokens}) or raise max_length "
            f"({config.training.max_length}), or hold out prompts that the model can take.",
        )
    ]


def _prompt_warnings(prompts: HeldOut | None) -> list[str]:
    if prompts is None or not prompts.prompts:
        return []
    findings = [
        (prompts.too_long, f"are longer than {prompts.limit} tokens"),
        (prompts.refused, "are refused by the chat template"),
    ]
    return [
        f"{count} held-out prompts {why} and will be left out of the evaluation."
        for count, why in findings
        if count
    ]


def _template_errors(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> list[RunError]:
    """A policy that never saw the end of an answer writes until it is cut; a reward model need not stop."""
    if METHODS[config.method].makes != "policy" or rendering.ends_turns(tokenizer):
        return []
    return [
        RunError(
            what=rendering.NEVER_STOPS,
            where=f"the chat template of {config.model}",
            do="Let the template close the assistant's turn with the EOS token.",
        )
    ]


def _answer(
    *,
    errors: list[RunError] | None = None,
    warnings: list[str] | None = None,
    rows: dict[str, Any] | None = None,
    template: dict[str, Any] | None = None,
    estimate: dict[str, Any] | None = None,
) -> Preflight:
    return Preflight(
        ok=not errors,
        errors=errors or [],
        warnings=warnings or [],
        rows=rows or {},
        template=template or {},
        estimate=estimate or {},
    )


def _counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Message]], int]:
    """Counts tokens, each conversation once."""
    known: dict[str, int] = {}

    def count(messages: list[Message]) -> int:
        key = json.dumps(messages)
        if key not in known:
            known[key] = len(rendering.conversation_ids(tokenizer, messages))
        return known[key]

    return count


def _vocabulary_errors(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, where: str
) -> list[RunError]:
    highest, embeddings = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if highest < embeddings:
        return []
    return [
        RunError(
            what=f"The tokenizer knows tokens up to {highest}; the model has only {embeddings} embeddings.",
            where=where,
            do="Use the tokenizer that the model was trained with.",
        )
    ]


def _memory_warnings(guess: dict[str, Any]) -> list[str]:
    if not guess or guess["memory_bytes"] <= guess["memory_available_bytes"]:
        return []
    needed, there = (guess[name] / 1e9 for name in ("memory_bytes", "memory_available_bytes"))
    return [
        f"It may need {needed:.1f} GB of memory, and {there:.1f} GB are free: lower batch_size, use LoRA."
    ]


def _template(tokenizer: PreTrainedTokenizerBase, sample: list[Message] | None) -> dict[str, Any]:
    if sample is None:
        return {"hash": rendering.template_hash(tokenizer)}
    ids = rendering.conversation_ids(tokenizer, sample)
    ends = set(rendering.end_ids(tokenizer))
    while ids and not str(tokenizer.decode(ids[-1:])).strip():  # ChatML ends a turn with EOS and a newline
        ids.pop()
    return {
        "hash": rendering.template_hash(tokenizer),
        "sample": rendering.render_conversation(tokenizer, sample),
        "bos": ids.count(tokenizer.bos_token_id),
        "eos_is_last": bool(ids) and ids[-1] in ends,
    }
