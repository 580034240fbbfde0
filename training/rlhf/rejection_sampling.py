"""Rejection sampling: draw N completions for each prompt, keep the best by reward, and learn them by SFT.

Llama 2's other half beside PPO (2307.09288, section 3.2.3). What was drawn, with its rewards, is in
`drawn.jsonl` of the run folder, complete once it has that name: a run that was stopped goes on drawing where
it stood, and one that was stopped while it trained does not draw again. A completion that was cut is never
the best one: a policy that imitates it forgets how to stop.

While it draws, a step is a prompt; then a step is one of SFT. The best of held-out prompts, drawn alike, are
what its held-out loss is measured on (`drawn.test.jsonl`).
"""

import gc
import json
import os
import time
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from training.rlhf import fitting, likelihood, loading, online_prompts, sampling, sft
from training.rlhf.checks import online_rehearsal, rehearsal
from training.rlhf.config import RunConfig
from training.rlhf.constitutional import drafts
from training.rlhf.failures import Refused
from training.rlhf.likelihood import Labelled
from training.rlhf.model_files import causal_config
from training.rlhf.progress import finishing_before_stop, raise_if_stopped, report
from training.rlhf.reward_kinds.reward_interface import Rewards
from training.rlhf.rewards import load_rewards
from training.rlhf.rows import held_out
from training.rlhf.rows.single_rows import Demonstration, PromptRow
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl
from training.rlhf.tuning import loaded_dtype

FILE = "drawn.jsonl"
HELD_OUT_FILE = "drawn.test.jsonl"
MOST_HELD_OUT = 64  # prompts
_HELD_OUT_DRAWS = 1_000_000  # numbers of their draws begin here, far from those that are learnt from
_AT_ONCE = 256  # completions drawn and scored between two lines of progress


class Drawn(TypedDict):
    text: str
    finish: str  # "eos" or "length"
    tokens: int
    reward: float
    parts: dict[str, float]


class DrawnRow(TypedDict):
    """A line of drawn.jsonl: what was drawn for a line of prompts.train.jsonl."""

    line: int
    prompt: list[dict[str, str]]
    completions: list[Drawn]


def train(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Draw, choose, learn, and leave model/. Returns what result.json says about it (see recipe.train)."""
    started = time.monotonic()
    tokenizer = loading.load_tokenizer(config.model)
    prompts, counted = online_prompts.usable(run_dir, config, tokenizer, causal_config(config.model))
    dropped = counted["train"]["dropped"]
    progress.write(f"{len(prompts)} prompts to write to, {dropped} left out")
    unseen = held_out.read(run_dir, config, tokenizer, causal_config(config.model)).prompts[:MOST_HELD_OUT]
    if not (run_dir.path / FILE).exists():
        _rehearse(run_dir, config, prompts, progress)
    rows = draw(run_dir, config, prompts, progress)
    tests = draw(
        run_dir,
        config,
        [PromptRow(line=one.line + 1, prompt=one.messages) for one in unseen],
        progress,
        file=HELD_OUT_FILE,
    )
    chosen, held = ([one for row in drawn if (one := best(row)) is not None] for drawn in (rows, tests))
    if not chosen:
        raise Refused(
            f"None of the completions of {len(rows)} prompts ended within {config.sampling.max_new_tokens} "
            "tokens, so there is nothing to imitate.",
            str(run_dir.path / FILE),
            "Raise max_new_tokens, or begin from a policy that has learnt to stop.",
        )
    report(progress, figures(rows), message=f"Learning the best completions of {len(chosen)} prompts")

    model = loading.load_policy(config.model, dtype=loaded_dtype(config))
    loading.fit(model, tokenizer, where=config.model)
    trainer = sft.make_trainer(
        model=model, tokenizer=tokenizer, train=chosen, test=held, config=config, run_dir=run_dir
    )
    if held:  # before the first step, and after each epoch
        trainer.args.eval_strategy, trainer.args.eval_on_start = IntervalStrategy.EPOCH, True
    fitting.fit(trainer, run_dir=run_dir, progress=progress)
    loss: dict[str, float] = trainer.evaluate() if held else {}
    seconds = time.monotonic() - started
    report(progress, {"train_seconds": seconds}, message="Saving the model")
    fitting.save_trained(trainer, tokenizer, run_dir=run_dir, config=config)
    del trainer, model
    gc.collect()
    torch.cuda.empty_cache()
    left_out = len(rows) - len(chosen)  # every completion of theirs was cut
    return {
        "rows": {
            "train": {"kept": len(chosen), "dropped": dropped + left_out},
            "test": {"kept": len(held), "dropped": len(unseen) - len(held)},
        },
        "steps": progress.total_steps,
        "lineage": json.loads((run_dir.model / "lineage.json").read_text(encoding="utf-8")),
        "train_seconds": round(seconds, 2),
        "held_out": loss,
    }


def _rehearse(
    run_dir: RunDir, config: RunConfig, prompts: Sequence[PromptRow], progress: ProgressWriter
) -> None:
    """A step of the SFT to come, before anything is drawn for it: the longest prompts, answered at length."""
    tokenizer = loading.load_tokenizer(config.model)
    model = loading.load_policy(config.model, dtype=loaded_dtype(config))
    loading.fit(model, tokenizer, where=config.model)
    _, samples = online_rehearsal.longest(
        model,
        tokenizer,
        [row.prompt for row in prompts],
        drawing=config.sampling,
        count=len(prompts),
    )
    trainer = likelihood.trainer_of(
        model=model,
        tokenizer=tokenizer,
        train=[Labelled([*one.prompt_ids, *one.ids], start=len(one.prompt_ids)) for one in samples],
        test=[],
        config=config,
        run_dir=run_dir,
    )
    rehearsal.of_trainer(trainer, run_dir=run_dir, progress=progress)
    del trainer, model
    gc.collect()
    torch.cuda.empty_cache()


def draw(
    run_dir: RunDir,
    config: RunConfig,
    prompts: Sequence[PromptRow],
    progress: ProgressWriter,
    *,
    file: str = FILE,
) -> list[DrawnRow]:
    """What the file holds, after drawing whatever it lacks. Raises Cancelled between two tokens."""
    complete = run_dir.path / file
    if complete.exists() or not prompts:
        return list(read_jsonl(complete))
    draft = run_dir.path / f".{file}"
    is_learnt = file == FILE
    first = 0 if is_learnt else _HELD_OUT_DRAWS
    at_once = max(1, _AT_ONCE // config.rejection_sampling.completions_per_prompt)
    done = drafts.whole_chunks(draft, at_once)
    progress.write("Loading the policy and the reward")
    tokenizer = loading.load_tokenizer(config.model)
    model = loading.load_policy(config.model, dtype=loading.serving_dtype(config.model))
    loading.fit(model, tokenizer, where=config.model)
    loading.use_device(model)
    rewards = load_rewards(config)
    with finishing_before_stop():  # a stop is heard at every token; what is in the draft stays
        for start in range(done, len(prompts), at_once):
            raise_if_stopped()
            chunk = prompts[start : start + at_once]
            rows = _draw_chunk(model, tokenizer, rewards, chunk, config, number=first + start // at_once)
            drafts.append(draft, rows)
            done = start + len(chunk)
            if is_learnt:
                progress.step, progress.total_steps = done, len(prompts)
                report(progress, figures(rows), message=f"Wrote to {done} of {len(prompts)} prompts")
            else:
                progress.write(f"Wrote to {done} of {len(prompts)} held-out prompts")
        os.replace(draft, complete)
    del model, rewards
    gc.collect()
    torch.cuda.empty_cache()
    return list(read_jsonl(complete))


def best(row: DrawnRow) -> Demonstration | None:
    """The finished completion with the highest reward, the first of equals; None when all were cut."""
    finished = [one for one in row["completions"] if one["finish"] == "eos"]
    if not finished:
        return None
    chosen = max(finished, key=lambda one: one["reward"])
    answer = {"role": "assistant", "content": chosen["text"]}
    return Demonstration(line=row["line"], prompt=row["prompt"], completion=[answer])


def figures(rows: Sequence[DrawnRow]) -> dict[str, float]:
    """What was drawn: mean reward, mean of the best that ended, EOS rate, mean length in tokens."""
    every = [one for row in rows for one in row["completions"]]
    kept = [
        max(ended)
        for row in rows
        if (ended := [c["reward"] for c in row["completions"] if c["finish"] == "eos"])
    ]
    found = {
        "reward": sum(one["reward"] for one in every) / len(every),
        "eos_rate": sum(one["finish"] == "eos" for one in every) / len(every),
        "completions/mean_length": sum(one["tokens"] for one in every) / len(every),
    }
    for name in every[0]["parts"]:
        found[f"rewards/{name}/mean"] = sum(one["parts"][name] for one in every) / len(every)
    return found | ({"reward_best": sum(kept) / len(kept)} if kept else {})


def _draw_chunk(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Rewards,
    prompts: Sequence[PromptRow],
    config: RunConfig,
    *,
    number: int,
) -> list[DrawnRow]:
    each = config.rejection_sampling.completions_per_prompt
    asked = [row.prompt for row in prompts for _ in range(each)]
    samples = sampling.generate(
        model,
        tokenizer,
        asked,
        sampling=config.sampling,
        seed=sampling.policy_seed(config.seed, number),
    )
    scored = rewards.score(asked, samples)
    drawn = [
        Drawn(
            text=one.text,
            finish=one.finish,
            tokens=one.tokens,
            reward=scored.total[place],
            parts={name: values[place] for name, values in scored.parts.items()},
        )
        for place, one in enumerate(samples)
    ]
    return [
        DrawnRow(line=row.line, prompt=row.prompt, completions=drawn[place * each : (place + 1) * each])
        for place, row in enumerate(prompts)
    ]
