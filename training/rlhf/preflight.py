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

from training.rlhf import (
    failures,
    judge_audit,
    learners,
    loading,
    prompt_parts,
    rendering,
    sampling,
    served_sampling,
)
from training.rlhf.checks import disk, estimate
from training.rlhf.config import RunConfig
from training.rlhf.constitutional import made_data
from training.rlhf.data import Element, Row
from training.rlhf.early import early_stopping
from training.rlhf.methods import METHODS
from training.rlhf.model_files import causal_config, positions, reward_config
from training.rlhf.progress import Cancelled
from training.rlhf.rows import held_out, row_checks
from training.rlhf.rows.door import Message
from training.rlhf.rows.held_out import HeldOut
from training.rlhf.run_dir import EXIT_REFUSED, Preflight, RunDir, RunError, SampleRequest
from training.rlhf.server_settings import ServedPolicy, is_address
from training.rlhf.tuning_kinds import adapters


def check(run_dir: RunDir, config: RunConfig) -> Preflight:
    """The content of preflight.json. Never raises but for a stop: what goes wrong is an error in it."""
    try:
        if config.method == "judge_audit":
            return judge_audit.check(run_dir, config)
        if config.method == "sample":
            return _check_sampling(run_dir, config)
        if METHODS[config.method].makes == "dataset":
            return made_data.check(run_dir, config)
        return _check(run_dir, config)
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
    unseen = len(prompts.prompts) if prompts and METHODS[config.method].draws else len(test)
    errors += early_stopping.errors(config, held_out_rows=unseen, where=str(run_dir.data))
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
    """Every policy can be loaded or asked, and takes every prompt that is meant for it."""
    requests = sampling.read_requests(run_dir, config)
    warnings = []
    for name, location in config.policies.items():
        if is_address(location):
            _ask_once(config, name, requests)
            continue
        tokenizer = loading.load_tokenizer(location)
        loading.check_weights(location, purpose="policy")
        room = positions(causal_config(location)) - config.sampling.max_new_tokens
        asked = [request["prompt"] for request in requests if name in request["policies"]]
        parts = config.parts_of(name)
        read = (prompt_parts.as_read(parts, prompt) for prompt in asked)
        cut = sum(len(rendering.prompt_ids(tokenizer, prompt)) > room for prompt in read)
        if cut:
            warnings.append(f"Policy {name} reads only the end of {cut} prompts: they exceed its positions.")
    errors = sampling.length_problems(config, requests)
    return _answer(errors=errors, warnings=[] if errors else warnings)


def _ask_once(config: RunConfig, name: str, requests: list[SampleRequest]) -> None:
    """Raise Refused where a server does not answer the longest question that this run will ask it."""
    served = config.servers.get(name, ServedPolicy())
    writer = served_sampling.Writer(config.policies[name], served, name=name, sampling=config.sampling)
    asked = [
        prompt_parts.as_read(config.parts_of(name), one["prompt"])
        for one in requests
        if name in one["policies"]
    ]
    if asked:
        writer.server.ask(writer.body(asked[writer.first_question(asked)], config.seed))


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
