"""What methods that make a dataset share: prompts to write to, the policy that writes, and their check.

A module of such a method holds `make(run_dir, config, progress)` and FILE, the rows it leaves in the run
folder; training.made_datasets turns them into a frozen dataset.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import loading, rendering, sampling
from training.rlhf.checks import estimate
from training.rlhf.config import RunConfig, Sampling
from training.rlhf.constitutional import constitution
from training.rlhf.data import SPLITS, Split
from training.rlhf.failures import Refused
from training.rlhf.model_files import causal_config, positions
from training.rlhf.reward_kinds import judge, judge_voices
from training.rlhf.reward_options import is_address
from training.rlhf.rows.door import Message
from training.rlhf.rows.single_rows import PromptRow, read_prompts
from training.rlhf.run_dir import Preflight, RunDir

AT_ONCE = 32  # prompts between two lines of progress
HELD_OUT_SHARE = 4  # of as many prompts to train on, one that is held out


class Text(TypedDict):
    """Something that a policy wrote. `finish`: "eos" or "length"."""

    text: str
    finish: str
    tokens: int


class Asked(NamedTuple):
    """A prompt that is written to; `number` counts from 1 over both splits."""

    number: int
    split: Split
    row: PromptRow

    @property
    def prompt(self) -> list[Message]:
        return self.row.prompt


class Prompts(NamedTuple):
    asked: list[Asked]
    rows: dict[str, dict[str, int]]  # split -> kept, dropped, longest, ties: as preflight counts rows


class Writer:
    """A policy in memory, and the seeds of what it writes."""

    def __init__(self, location: str, config: RunConfig) -> None:
        self.config = config
        self.tokenizer: PreTrainedTokenizerBase = loading.load_tokenizer(location)
        self.model: PreTrainedModel = loading.load_policy(location, dtype=loading.serving_dtype(location))
        loading.fit(self.model, self.tokenizer, where=location)
        loading.use_device(self.model)

    def write(self, conversations: Sequence[rendering.Messages], *, batch: int) -> list[Text]:
        """One text for each conversation, in order. The batch's number fixes every draw."""
        drawn = sampling.generate(
            self.model,
            self.tokenizer,
            conversations,
            sampling=self.config.sampling,
            seed=sampling.policy_seed(self.config.seed, batch),
        )
        return [Text(text=one.text, finish=one.finish, tokens=one.tokens) for one in drawn]

    def answers(self, questions: Sequence[rendering.Messages]) -> list[str]:
        """As a judge (training.rlhf.reward_kinds.judge.Voice): without chance."""
        calm = Sampling(
            temperature=0,
            max_new_tokens=self.config.ai_preferences.max_tokens,
            batch_size=self.config.sampling.batch_size,
        )
        drawn = sampling.generate(self.model, self.tokenizer, questions, sampling=calm, seed=self.config.seed)
        return [one.text for one in drawn]


def read(run_dir: RunDir, config: RunConfig, *, most: int) -> Prompts:
    """Prompts that leave room for an answer, at most `most` to train on and a quarter as many held out.

    Which ones is decided by the seed. Raises Refused when none is left to train on.
    """
    tokenizer = loading.load_tokenizer(config.model)
    limit = positions(causal_config(config.model)) - config.sampling.max_new_tokens
    asked: list[Asked] = []
    rows: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        found = read_prompts(run_dir.data / f"prompts.{split}.jsonl")
        lengths = {row.line: _length(tokenizer, row.prompt) for row in found}
        fitting = [row for row in found if lengths[row.line] <= limit]
        kept = most if split == "train" else math.ceil(most / HELD_OUT_SHARE)
        if len(fitting) > kept:
            fitting = random.Random(f"{config.seed} {split}").sample(fitting, kept)
            fitting.sort(key=lambda row: row.line)
        rows[split] = {
            "kept": len(fitting),
            "dropped": sum(length > limit for length in lengths.values()),
            "longest": max((int(one) for one in lengths.values() if one < math.inf), default=0),
            "ties": 0,
        }
        asked += [Asked(len(asked) + number, split, row) for number, row in enumerate(fitting, start=1)]
    if not rows["train"]["kept"]:
        raise Refused(
            f"None of the {rows['train']['dropped']} prompts can be written to: they are longer than {limit} "
            "tokens, or the chat template refuses them." if rows["train"]["dropped"]
            else "There is no prompt to write to.",
            str(run_dir.data / "prompts.train.jsonl"),
            "Lower max_new_tokens, or import prompts that the policy can take.",
        )  # fmt: skip
    return Prompts(asked, rows)


def _length(tokenizer: PreTrainedTokenizerBase, prompt: list[Message]) -> float:
    try:
        return len(rendering.prompt_ids(tokenizer, prompt))
    except rendering.RenderError:
        return math.inf


def said(text: str) -> Message:
    """As the assistant's turn. Some templates refuse a turn without a word."""
    return {"role": "assistant", "content": text if text.strip() else "…"}


def check(run_dir: RunDir, config: RunConfig) -> Preflight:
    """The content of preflight.json. Raises Refused; reads no weights."""
    tokenizer = loading.load_tokenizer(config.model)
    loading.check_weights(config.model, purpose="policy")
    found = constitution.read(run_dir.data)
    prompts = read(run_dir, config, most=most_prompts(config))
    warnings = [*rendering.template_problems(tokenizer), *_dropped(prompts)]
    if config.method == "critique_revision":
        warnings += _without_room(prompts, found, config, tokenizer)
    elif is_address(config.ai_preferences.judge):
        warnings += _ask_once(config)
    elif config.ai_preferences.judge:
        loading.load_tokenizer(config.ai_preferences.judge)
        loading.check_weights(config.ai_preferences.judge, purpose="policy")
    guess = _estimate(prompts, found, config, tokenizer)
    if guess["memory_bytes"] > guess["memory_available_bytes"]:
        needed, there = (guess[name] / 1e9 for name in ("memory_bytes", "memory_available_bytes"))
        warnings.append(f"It may need {needed:.1f} GB of memory, and {there:.1f} GB are free.")
    return Preflight(
        ok=True,
        errors=[],
        warnings=warnings,
        rows={"prompts": prompts.rows},
        template={"hash": rendering.template_hash(tokenizer)},
        estimate=guess,
    )


def _estimate(
    prompts: Prompts,
    found: constitution.Constitution,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Of all that the policies write: answers, critiques and revisions, or pairs and what is said of them."""
    new = config.sampling.max_new_tokens
    batches: list[list[int]] = []
    lengths = [int(_length(tokenizer, one.prompt)) for one in prompts.asked]
    asks = max(_length(tokenizer, [{"role": "user", "content": one.critique}]) for one in found.principles)
    for start in range(0, len(lengths), AT_ONCE):
        chunk = lengths[start : start + AT_ONCE]
        if config.method == "critique_revision":
            one_round = [
                [int(length + new + asks) for length in chunk],
                [int(length + 2 * (new + asks)) for length in chunk],
            ]
            batches += [chunk, *one_round * config.critique_revision.rounds]
            continue
        batches.append([length for length in chunk for _ in range(2)])
        if not is_address(config.ai_preferences.judge):
            questions = 2 * config.ai_preferences.principles
            batches.append([int(length + 2 * new + 2 * asks) for length in chunk for _ in range(questions)])
    return estimate.of_writing(config, causal_config(config.model), batches=batches, steps=len(prompts.asked))


def most_prompts(config: RunConfig) -> int:
    own = config.critique_revision if config.method == "critique_revision" else config.ai_preferences
    return own.prompts


def _dropped(prompts: Prompts) -> list[str]:
    dropped = sum(counts["dropped"] for counts in prompts.rows.values())
    if not dropped:
        return []
    return [f"{dropped} prompts leave no room for an answer, or the chat template refuses them."]


def _without_room(
    prompts: Prompts,
    found: constitution.Constitution,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """Conversations that lose their beginning by the time the revision is written."""
    room = positions(causal_config(config.model)) - config.sampling.max_new_tokens
    longest = max(
        len(
            rendering.prompt_ids(
                tokenizer,
                [
                    {"role": "user", "content": one.critique},
                    said(""),
                    {"role": "user", "content": one.revision},
                ],
            )
        )
        for one in found.principles
    )
    most = longest + 2 * config.sampling.max_new_tokens  # answer and critique stand before the revision
    cut = sum(_length(tokenizer, one.prompt) + most > room for one in prompts.asked)
    if not cut:
        return []
    return [
        f"With {cut} of {len(prompts.asked)} prompts the policy may read only the end of the conversation "
        f"when it revises: prompt, answer, critique and requests may exceed its {room} tokens of room. "
        "Lower max_new_tokens, or shorten the requests."
    ]


def _ask_once(config: RunConfig) -> list[str]:
    """A judge that does not answer is found before anything is written. Raises Refused."""
    address = config.ai_preferences.judge
    voice = judge_voices.ServerVoice(address, config.ai_preferences.voice(), where=f"the judge {address}")
    (said,) = voice.answers([[{"role": "user", "content": "Reply with A alone."}]])
    if judge.read_choice(said) == "first":
        return []
    return [
        f"Asked to reply with A alone, the judge said “{said.strip()[:80]}”: such answers are nonsense, and "
        "counted as that. A model that thinks aloud needs a server that hides it."
    ]


def counted(names: Sequence[str], found: Sequence[str]) -> dict[str, int]:
    """How often each name is found, names that are not found among them."""
    return {name: found.count(name) for name in names}


def length_figures(texts: Sequence[Text]) -> dict[str, Any]:
    return {
        "completions/mean_length": sum(one["tokens"] for one in texts) / len(texts),
        "eos_rate": sum(one["finish"] == "eos" for one in texts) / len(texts),
    }
