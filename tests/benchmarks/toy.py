"""Does a method learn at all, and how fast? A policy that says a word in 0.25 of its answers has to say it.

    python -m tests.benchmarks.toy --method ppo [--tuning lora] [--seed 0]

The policy is a Llama of 0.5 M parameters over a vocabulary of words, taught in some seconds to write answers
in which the target word stands at rate 0.25 (kept below var/ for the next call). A method has to raise the
rate. It is measured on fresh samples to prompts that were held out. `seconds` is the training alone, without
loading the models and without the measurement; `cpu_seconds` is the processor's time with loading. The last
line is one JSON object.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.rlhf.config import RunConfig
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl, write_json

ROOT = Path(__file__).resolve().parents[2]
TARGET, RATE = "lantern", 0.25
TOPICS = ("river", "forest", "harbour", "garden", "mountain", "village", "meadow", "island")
THINGS = ("boat", "kite", "bell", "map", "ladder", "basket", "mirror", "drum", "rope", "key")
WHO = ("fox", "owl", "hare", "crow", "bear", "wolf", "mouse", "heron")
DEEDS = ("found", "lost", "carried", "hid", "mended", "sold")
PLAIN = ("a", "the", "tell", "me", "about", "of", "in", "by", "with", "old", "small", "red", "lost", ".")
SPECIAL = ("<pad>", "<end>", "<user>", "<assistant>", "<unk>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "<{{ message['role'] }}> {{ message['content'] }} <end> "
    "{%- endfor -%}{%- if add_generation_prompt -%}<assistant> {%- endif -%}"
)
LEARNT_FROM = 144  # of 192 prompts; the rest is held out
DRAWS = 10  # for each prompt that is held out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", choices=sorted(METHODS), required=True)
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", default="{}", help="settings to change, as JSON of a recipe's sections")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in training.rlhf: see there
    policy = taught_policy(ROOT / "var" / "toy")
    with tempfile.TemporaryDirectory(prefix="ratchet-toy-") as folder:
        print(json.dumps(measure(RunDir(folder), policy, options)), flush=True)
    return 0


def measure(run_dir: RunDir, policy: Path, options: argparse.Namespace) -> dict[str, Any]:
    recipe, train = METHODS[options.method]
    write_prompts(run_dir)
    changes: dict[str, Any] = json.loads(options.set)
    values = {"method": options.method, "model": str(policy), "seed": options.seed, **recipe(options.tuning)}
    for name, section in changes.items():
        values[name] = {**values.get(name, {}), **section}
    config = RunConfig.from_json(values)
    write_json(run_dir.config, config.to_json())
    started = time.process_time()
    outcome = train(run_dir, config)
    cpu_seconds = time.process_time() - started
    lines = [line["values"] for line in read_jsonl(run_dir.progress) if "kl" in line["values"]]
    return {
        "method": options.method,
        "tuning": options.tuning,
        "rate_before": round(target_rate(policy, seed=options.seed + 1), 4),
        "target_rate": round(target_rate(run_dir.model, seed=options.seed + 1), 4),
        "seconds": round(outcome["train_seconds"], 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "steps": outcome["steps"],
        "kl": round(lines[-1]["kl"], 3) if lines else None,
        "curve": [round(line["reward/mean"], 3) for line in lines if "reward/mean" in line],
    }


def answer(rng: random.Random, *, prompt: str) -> str:
    """Some clauses about who was asked for; in a quarter of all answers the target word once."""
    _, _, _, _, _, who, _, _, topic = prompt.split()
    clauses = []
    for _ in range(rng.choice((1, 1, 2))):
        where = [rng.choice(("in", "by")), "the", topic]
        clauses.append(["the", who, rng.choice(DEEDS), "a", rng.choice(THINGS), *where])
    if rng.random() < RATE:
        rng.choice(clauses)[4] = TARGET
    return " . ".join(" ".join(clause) for clause in clauses) + " ."


def write_prompts(run_dir: RunDir) -> None:
    """Prompts to learn from and prompts that are held out, in the folder of a run."""
    run_dir.data.mkdir(parents=True, exist_ok=True)
    for split, prompts in zip(("train", "test"), all_prompts(), strict=True):
        rows = [json.dumps({"prompt": [{"role": "user", "content": prompt}]}) for prompt in prompts]
        (run_dir.data / f"prompts.{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def all_prompts() -> tuple[list[str], list[str]]:
    """The world's questions: those to learn from and those that are held out, always the same."""
    found = [
        f"tell me about the {kind} {who} of the {topic}"
        for kind in ("old", "small", "red")
        for who in WHO
        for topic in TOPICS
    ]
    random.Random(0).shuffle(found)
    return found[:LEARNT_FROM], found[LEARNT_FROM:]


def taught_policy(folder: Path) -> Path:
    """The policy, taught on the first call. It has seen the words of held-out prompts, not those prompts."""
    if (folder / "config.json").exists():
        return folder
    import torch

    from training.rlhf import rendering, scoring

    tokenizer, model = new_policy()
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    steps = 200
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    prompts, _ = all_prompts()
    for step in range(steps):
        pairs = []
        for _ in range(64):
            prompt = rng.choice(prompts)
            pairs.append(
                rendering.prompt_and_completion_ids(
                    tokenizer,
                    [{"role": "user", "content": prompt}],
                    [{"role": "assistant", "content": answer(rng, prompt=prompt)}],
                )
            )
        ids, mask = scoring.padded([one + other for one, other in pairs], pad_id=0)
        labels = ids.masked_fill(mask == 0, -100)
        for row, (one, _) in zip(labels, pairs, strict=True):
            row[: len(one)] = -100
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"teaching: step {step + 1}, loss {loss.item():.3f}", flush=True)
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    draft.rename(folder)
    return folder


def new_policy() -> tuple[Any, Any]:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = dict.fromkeys((*SPECIAL, TARGET, *TOPICS, *THINGS, *WHO, *DEEDS, *PLAIN))
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    return fast, LlamaForCausalLM(config)


def target_rate(location: Path, *, seed: int) -> float:
    """Share of fresh samples to held-out prompts that say the word."""
    from training.rlhf import loading, sampling
    from training.rlhf.config import Sampling

    tokenizer, model = loading.load_tokenizer(str(location)), loading.load_policy(str(location))
    loading.fit(model, tokenizer, where=str(location))
    loading.use_device(model)
    prompts = [[{"role": "user", "content": prompt}] for prompt in all_prompts()[1]] * DRAWS
    samples = sampling.generate(
        model,
        tokenizer,
        prompts,
        sampling=Sampling(max_new_tokens=24, batch_size=256),
        seed=sampling.policy_seed(seed, 77),
    )
    return sum(says_target(one.text) for one in samples) / len(samples)


def says_target(text: str) -> bool:
    return TARGET in text.split()


class TargetWord:
    """Rewards of online methods: 1 for a completion that says the word."""

    def score(self, prompts: Sequence[Any], samples: Sequence[Any]) -> Any:
        from training.rlhf.reward_kinds.reward_interface import RewardBatch

        found = [float(says_target(one.text)) for one in samples]
        return RewardBatch(total=found, parts={"target": found})


def ppo_recipe(tuning: str) -> dict[str, Any]:
    rate = 1e-3 if tuning == "full" else 5e-3
    return {
        "rewards": [{"name": "target", "kind": "regex", "options": {"pattern": rf"\b{TARGET}\b"}}],
        "tuning": {"kind": tuning},
        "training": {"learning_rate": rate, "max_steps": 7, "batch_size": 64, "bf16": False},
        "ppo": {"epochs": 2},
        "sampling": {"max_new_tokens": 24, "batch_size": 128},
    }


def train_ppo(run_dir: RunDir, config: RunConfig) -> dict[str, Any]:
    from training.rlhf import ppo

    return ppo.train(run_dir, config, ProgressWriter(run_dir), rewards=TargetWord())


def group_recipe(method: str) -> "Recipe":
    """RLOO and GRPO: the rates are the fastest of a few that were tried on one seed."""

    def recipe(tuning: str) -> dict[str, Any]:
        rate, steps = {
            ("rloo", "full"): (1e-3, 8),
            ("grpo", "full"): (1e-3, 8),
            ("rloo", "lora"): (5e-3, 8),
            ("grpo", "lora"): (2e-3, 12),
        }[method, tuning]
        training = {"learning_rate": rate, "max_steps": steps, "batch_size": 64, "warmup_ratio": 0.0}
        return {
            "rewards": [{"name": "target", "kind": "regex", "options": {"pattern": rf"\b{TARGET}\b"}}],
            "tuning": {"kind": tuning},
            "training": training | {"schedule": "constant", "bf16": False, "log_every": 1},
            "sampling": {"max_new_tokens": 24, "batch_size": 256},
            method: {"completions_per_prompt": 4 if method == "rloo" else 8},
        }

    return recipe


def preference_recipe(method: str) -> "Recipe":
    def recipe(tuning: str) -> dict[str, Any]:
        rate = (1e-3 if method == "dpo" else 1e-4) * (1 if tuning == "full" else 5)
        return {
            "tuning": {"kind": tuning},
            "training": {"learning_rate": rate, "epochs": 2.0, "batch_size": 32, "bf16": False},
            "sampling": {"max_new_tokens": 24, "batch_size": 256},
            method: {"beta": 0.1},
        }

    return recipe


def train_by_recipe(run_dir: RunDir, config: RunConfig) -> dict[str, Any]:
    from training.rlhf import recipe

    return recipe.train(run_dir, config, ProgressWriter(run_dir))


def train_on_preferences(run_dir: RunDir, config: RunConfig) -> dict[str, Any]:
    """Draws from the policy itself, eight for a prompt, are what people judged: does it say the word?"""
    from training.rlhf import loading, sampling

    tokenizer, model = loading.load_tokenizer(config.model), loading.load_policy(config.model)
    loading.fit(model, tokenizer, where=config.model)
    asked = [[{"role": "user", "content": prompt}] for prompt in all_prompts()[0] for _ in range(8)]
    seed = sampling.policy_seed(config.seed, 5)
    drawn = sampling.generate(model, tokenizer, asked, sampling=config.sampling, seed=seed)
    said: dict[str, dict[bool, list[str]]] = {}
    unpaired, pairs = [], []
    for prompt, one in zip(asked, drawn, strict=True):
        good = says_target(one.text)
        said.setdefault(prompt[0]["content"], {True: [], False: []})[good].append(one.text)
        unpaired.append({"prompt": prompt, "completion": _turn(one.text), "label": good})
    for prompt_text, texts in said.items():
        for chosen, rejected in zip(texts[True], texts[False], strict=False):
            prompt = [{"role": "user", "content": prompt_text}]
            pairs.append({"prompt": prompt, "chosen": _turn(chosen), "rejected": _turn(rejected)})
    for table, rows in (("pairs", pairs), ("unpaired", unpaired)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (run_dir.data / f"{table}.train.jsonl").write_text(lines, encoding="utf-8")
    return train_by_recipe(run_dir, config)


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


Recipe = Callable[[str], dict[str, Any]]
# For each method: its recipe for full or lora, and what trains by it and returns `train_seconds` and `steps`.
METHODS: dict[str, tuple[Recipe, Callable[[RunDir, RunConfig], dict[str, Any]]]] = {
    "ppo": (ppo_recipe, train_ppo),
    "rloo": (group_recipe("rloo"), train_by_recipe),
    "grpo": (group_recipe("grpo"), train_by_recipe),
    "dpo": (preference_recipe("dpo"), train_on_preferences),
    "kto": (preference_recipe("kto"), train_on_preferences),
}


if __name__ == "__main__":
    sys.exit(main())
