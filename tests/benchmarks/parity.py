"""Our trainers against a bare TRL script: same data, seed and settings. Same losses, and what do they cost?

    python -m tests.benchmarks.parity --method dpo|reward|sft|kto [--pairs 600] [--repeats 3]

Each training runs in a fresh process, ours and TRL's in turn. Time is `trainer.train()`, and for DPO and KTO
the pass over the reference too, which ours makes before and TRL's in each step. SFT learns from the preferred
side of each pair, KTO from both sides, good and bad. The last line is one JSON object;
`time_ratio` compares the fastest of each, because whatever else a machine does only ever adds time;
`cpu_ratio` does the same with the processor's time, which other processes disturb less.

Rows come in random order on both sides, for KTO in one order in all epochs. The starter's recipe groups them
by length, which bare TRL refuses for preferences (ValueError: no 'input_ids' to measure): there is nothing to
compare that with.
"""

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training.rlhf.config import RunConfig, Training
from training.rlhf.run_dir import RunDir, write_json
from training.rlhf.starter import world

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("ours", "trl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", choices=["reward", "dpo", "sft", "kto"], required=True)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        write_json(options.folder / "measured.json", train(options.folder, side=options.side))
        return 0
    with tempfile.TemporaryDirectory(prefix="ratchet-parity-") as folder:
        print(json.dumps(compare(Path(folder), options)), flush=True)
    return 0


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    policy, name = starter_policy(folder, seed=options.seed)
    print(f"{options.method}: {options.pairs} pairs, {options.epochs} epochs, from {name}", flush=True)
    config = RunConfig(
        method="reward_model" if options.method == "reward" else options.method,
        seed=options.seed,
        model=str(policy),
        training=Training(learning_rate=2e-4, epochs=options.epochs, batch_size=16, max_length=256),
    )
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            run = measure(folder / f"{side}-{repeat}", config, options, side=side)
            runs[side].append(run)
            print(
                f"{side:4} {run['seconds']:7.2f} s, {run['steps']} steps, last loss {run['losses'][-1]:.5f}",
                flush=True,
            )
    ours, theirs = runs["ours"], runs["trl"]
    if len(ours[0]["losses"]) != len(theirs[0]["losses"]):
        raise SystemExit("the two sides did not take the same steps")
    return {
        "method": options.method,
        "max_loss_difference": max(
            abs(one - other) for one, other in zip(ours[0]["losses"], theirs[0]["losses"], strict=True)
        ),
        "time_ratio": round(fastest(ours, "seconds") / fastest(theirs, "seconds"), 4),
        "cpu_ratio": round(fastest(ours, "cpu_seconds") / fastest(theirs, "cpu_seconds"), 4),
        "ms_per_step_ours": round(1000 * fastest(ours, "seconds") / ours[0]["steps"], 2),
        "ms_per_step_trl": round(1000 * fastest(theirs, "seconds") / theirs[0]["steps"], 2),
        "seconds_ours": [run["seconds"] for run in ours],
        "seconds_trl": [run["seconds"] for run in theirs],
        "steps": ours[0]["steps"],
        "pairs": options.pairs,
        "policy": name,
        "threads": ours[0]["threads"],
    }


def fastest(runs: list[dict[str, Any]], clock: str) -> float:
    return min(float(run[clock]) for run in runs)


def measure(folder: Path, config: RunConfig, options: argparse.Namespace, *, side: str) -> dict[str, Any]:
    """Train in a fresh process."""
    run_dir = RunDir(folder)
    run_dir.data.mkdir(parents=True)
    write_json(run_dir.config, config.to_json())
    rows = [json.dumps(row) for row in rows_for(config, pairs(options.pairs, seed=options.seed))]
    (run_dir.data / table_of(config)).write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "tests.benchmarks.parity", "--method", options.method]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # as in training.rlhf: see there
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    subprocess.run(
        [*command, "--side", side, "--folder", str(folder)],
        cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    result: dict[str, Any] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return result


def pairs(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Two stories for each prompt; the longer one is preferred, and nothing more is said about it."""
    rng = random.Random(seed)
    prompts = world.prompts(count, seed=seed)
    rows = []
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        one, other = sorted((world.story_for(prompt, rng) for _ in range(2)), key=len)
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": other}],
                "rejected": [{"role": "assistant", "content": one}],
            }
        )
    return rows


def table_of(config: RunConfig) -> str:
    return {"sft": "demonstrations", "kto": "unpaired"}.get(config.method, "pairs") + ".train.jsonl"


def rows_for(config: RunConfig, compared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the method learns from, of rows of `pairs`."""
    if config.method not in ("sft", "kto"):
        return compared
    rows = []
    for row in compared:
        rows.append({"prompt": row["prompt"], "completion": row["chosen"]})
        if config.method == "kto":
            rows[-1]["label"] = True
            rows.append({"prompt": row["prompt"], "completion": row["rejected"], "label": False})
    return rows


def starter_policy(folder: Path, *, seed: int) -> tuple[Path, str]:
    """The policy that is shipped, or one of its size with random weights."""
    from training.rlhf.starter import build

    if (build.SHIPPED / "model.safetensors").exists():
        return build.SHIPPED, "the starter policy"
    tokenizer = build.train_tokenizer(seed=seed)
    tokenizer.save_pretrained(folder / "policy")
    build.new_model(tokenizer, seed=seed).save_pretrained(folder / "policy")
    return folder / "policy", "a random policy of the starter's size"


def train(folder: Path, *, side: str) -> dict[str, Any]:
    """One training in this process: its losses and its time."""
    import datasets
    import torch

    datasets.disable_progress_bars()
    run_dir = RunDir(folder)
    config = RunConfig.load(run_dir.config)
    reference = Clock()
    trainer = our_trainer(run_dir, config, reference) if side == "ours" else bare(run_dir, config)
    training = Clock()
    with training:
        trainer.train()
    return {
        "seconds": round(training.seconds + reference.seconds, 3),
        "cpu_seconds": round(training.cpu_seconds + reference.cpu_seconds, 3),
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "steps": trainer.state.global_step,
        "threads": torch.get_num_threads(),
    }


class Clock:
    """Adds up the time spent within it."""

    seconds = 0.0
    cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


def our_trainer(run_dir: RunDir, config: RunConfig, reference: Clock) -> Any:
    """Our trainer; the clock takes the time that it gives to the reference."""
    from training.rlhf import loading
    from training.rlhf.data import read_for_dpo, read_for_reward_model
    from training.rlhf.reference import ReferenceFirst

    method: Any = importlib.import_module(f"training.rlhf.{config.method}")
    precompute = ReferenceFirst._precompute_ref_logps

    def timed(*arguments: Any, **options: Any) -> Any:
        with reference:
            return precompute(*arguments, **options)

    ReferenceFirst._precompute_ref_logps = timed  # type: ignore[method-assign]
    tokenizer = loading.load_tokenizer(config.model)
    if config.method == "reward_model":
        model = loading.load_reward_base(config.model, seed=config.seed)
        rows: Any = read_for_reward_model(run_dir, "train")
    elif config.method == "dpo":
        model, rows = loading.load_policy(config.model), read_for_dpo(run_dir, "train")
    else:
        model = loading.load_policy(config.model)
        rows = [row for table in method.tables(run_dir, config, "train").values() for row in table]
    loading.fit(model, tokenizer, where=config.model)
    return method.make_trainer(
        model=model, tokenizer=tokenizer, train=rows, test=[], config=config, run_dir=run_dir
    )


def bare(run_dir: RunDir, config: RunConfig) -> Any:
    """What a careful person writes with TRL alone, with the settings of the recipe."""
    from datasets import Dataset, load_dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from training.rlhf import fitting

    settings = fitting.settings(config.training, seed=config.seed, output_dir=run_dir.checkpoints)
    settings["max_length"] = config.training.max_length
    rows = load_dataset("json", data_files=str(run_dir.data / table_of(config)), split="train")
    if config.method == "reward_model":
        return RewardTrainer(model=config.model, args=RewardConfig(**settings), train_dataset=rows)
    if config.method == "sft":
        return SFTTrainer(model=config.model, args=SFTConfig(**settings), train_dataset=rows)
    if config.method == "dpo":
        arguments = DPOConfig(**settings, beta=config.dpo.beta)
        return DPOTrainer(model=config.model, args=arguments, train_dataset=rows)
    listed = rows.to_list()  # they stay beside their neighbours, so they are mixed before
    random.Random(config.seed).shuffle(listed)
    settings["train_sampling_strategy"] = "sequential"
    return KTOTrainer(
        model=config.model,
        args=KTOConfig(**settings, beta=config.kto.beta),
        train_dataset=Dataset.from_list(listed),
    )


if __name__ == "__main__":
    sys.exit(main())
