"""Our PPO against TRL 1.12's, the last it had: same policy, reward model, prompts, rollouts and updates.

    python -m tests.benchmarks.ppo_against_trl [--steps 20] [--repeats 1]

TRL 1.12 lives in an environment of its own, made below var/ on the first call from the package registry; the
rest of the stack is the one that we use. Each side trains in a fresh process. The policy is the starter, the
reward a reward model that learnt here from stories judged by the hidden preference. The last line is one JSON
object: `throughput_ratio` (completions a second, ours over TRL's), `memory_ratio` (peak of the process above
what the imports take), `reward_at_equal_kl` (the mean reward of each side, read off its curve of reward
against KL at the largest KL that both reached).
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.parity import ROOT, starter_policy
from training.rlhf.config import RunConfig, Sampling, Training
from training.rlhf.method_settings import Ppo, RewardFunction
from training.rlhf.run_dir import ProgressWriter, RunDir, write_json
from training.rlhf.starter import hidden_preference, world

TRL = "1.12.0"
THEIRS = Path(__file__).with_name("trl_ppo_side.py")
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="rollouts")
    parser.add_argument("--rollout", type=int, default=128, help="completions of one")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "var" / "ppo_against_trl")
    parser.add_argument("--side", choices=["reward", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (train_reward_model if options.side == "reward" else our_side)(options.folder)
        return 0
    print(json.dumps(compare(options)), flush=True)
    return 0


def compare(options: argparse.Namespace) -> dict[str, Any]:
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    python = trl_python(folder)
    policy, name = starter_policy(folder, seed=options.seed)
    reward = reward_model(folder, policy, seed=options.seed)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for repeat in range(options.repeats):
        for side in ("ours", "trl"):
            where = folder / f"{side}-{repeat}"
            prepare(where, policy=policy, reward=reward, options=options, seed=options.seed + repeat)
            module = [sys.executable, "-m", "tests.benchmarks.ppo_against_trl", "--side", "ours", "--folder"]
            command = module if side == "ours" else [str(python), str(THEIRS)]
            with open(where / "log", "w", encoding="utf-8") as log:
                subprocess.run(
                    [*command, str(where)],
                    cwd=ROOT,
                    env=os.environ | QUIET,
                    check=True,
                    stdout=log,
                    stderr=log,
                )
            found: dict[str, Any] = json.loads((where / "measured.json").read_text(encoding="utf-8"))
            runs[side].append(found)
            last = found["lines"][-1]
            print(
                f"{side:4} {found['seconds']:7.1f} s, {found['memory'] / 1e6:.0f} MB above the imports, "
                f"last rollout: reward {last['reward']:.3f} at KL {last['kl']:.2f}",
                flush=True,
            )
    completions = options.steps * options.rollout
    fastest = {side: min(run["seconds"] for run in found) for side, found in runs.items()}
    least = {side: min(run["memory"] for run in found) for side, found in runs.items()}
    return {
        "throughput_ratio": round(fastest["trl"] / fastest["ours"], 3),
        "memory_ratio": round(least["ours"] / least["trl"], 3),
        "reward_at_equal_kl": reward_at_equal_kl(runs["ours"][0]["lines"], runs["trl"][0]["lines"]),
        "completions_per_second": {side: round(completions / fastest[side], 1) for side in runs},
        "memory_mb": {side: round(least[side] / 1e6) for side in runs},
        "steps": options.steps,
        "rollout": options.rollout,
        "policy": name,
    }


def reward_at_equal_kl(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    kl = min(max(line["kl"] for line in side) for side in (ours, theirs))
    return {"kl": round(kl, 2), "ours": round(at_kl(ours, kl), 3), "trl": round(at_kl(theirs, kl), 3)}


def at_kl(lines: list[dict[str, float]], kl: float, width: float = 0.15) -> float:
    """Mean reward of the rollouts whose KL is nearest: those within 15 %, or the nearest three."""
    near = sorted(lines, key=lambda line: abs(line["kl"] - kl))
    within = [line for line in near if abs(line["kl"] - kl) <= width * kl]
    chosen = within if len(within) >= 3 else near[:3]
    return sum(line["reward"] for line in chosen) / len(chosen)


def trl_python(folder: Path) -> Path:
    """The interpreter of an environment that has TRL 1.12 and takes everything else from ours."""
    environment = folder / "trl"
    python = environment / "bin" / "python"
    if not (environment / "done").exists():
        print(f"making an environment with TRL {TRL}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        ours = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "zz_ours.pth").write_text(
            f"{ours}\n", encoding="utf-8"
        )  # after its own, so that its TRL wins
        quiet = ["-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([str(python), "-m", "pip", "install", *quiet, f"trl=={TRL}"], check=True)
        (environment / "done").touch()
    return python


def reward_model(folder: Path, policy: Path, *, seed: int) -> Path:
    """A reward model that learnt from 600 pairs of stories which the hidden preference judged."""
    where = folder / "reward"
    if not (where / "model" / "canaries.json").exists():
        print("training the reward model", flush=True)
        config = RunConfig(
            method="reward_model",
            seed=seed,
            model=str(policy),
            training=Training(learning_rate=5e-4, epochs=2.0, batch_size=16, max_length=256),
        )
        write_json_folder(where, config)
        rng = random.Random(seed)
        with open(where / "data" / "pairs.train.jsonl", "w", encoding="utf-8") as file:
            for prompt in world.prompts(600, seed=seed + 1):
                stories = [world.story_for(prompt, rng) for _ in range(2)]
                worse, better = sorted(stories, key=lambda story: hidden_preference.score(prompt, story))
                row = {"prompt": asked(prompt), "chosen": said(better), "rejected": said(worse)}
                file.write(json.dumps(row) + "\n")
        command = [sys.executable, "-m", "tests.benchmarks.ppo_against_trl", "--side", "reward", "--folder"]
        subprocess.run([*command, str(where)], cwd=ROOT, env=os.environ | QUIET, check=True)
    return where / "model"


def asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write_json_folder(where: Path, config: RunConfig) -> None:
    (where / "data").mkdir(parents=True, exist_ok=True)
    write_json(where / "config.json", config.to_json())


def train_reward_model(where: Path) -> None:
    from training.rlhf import recipe

    run_dir = RunDir(where)
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))


def prepare(where: Path, *, policy: Path, reward: Path, options: argparse.Namespace, seed: int) -> None:
    """The run folder of one side, and the same settings for TRL."""
    for old in ("progress.jsonl", "measured.json"):
        (where / old).unlink(missing_ok=True)
    ppo = Ppo(
        rollout_size=options.rollout,
        epochs=4,
        kl_coefficient=0.05,
        kl_target=0,  # TRL's coefficient is fixed
        normalise_rewards=False,
        missing_eos_penalty=1.0,
        most_kl=1e6,
    )
    config = RunConfig(
        method="ppo",
        seed=seed,
        model=str(policy),
        rewards=(RewardFunction(name="learnt", kind="model", location=str(reward)),),
        training=Training(
            learning_rate=1e-4, batch_size=32, max_steps=options.steps, warmup_ratio=0.0, log_every=1,
            save_every=10**6, bf16=False,
        ),
        sampling=Sampling(max_new_tokens=64, batch_size=options.rollout),
        ppo=ppo,
    )  # fmt: skip
    write_json_folder(where, config)
    rows = [json.dumps({"prompt": asked(prompt)}) for prompt in world.prompts(256, seed=0)]
    (where / "data" / "prompts.train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_json(
        where / "settings.json",
        {
            "policy": str(policy),
            "reward": str(reward),
            "seed": seed,
            "learning_rate": config.training.learning_rate,
            "batch_size": config.training.batch_size,
            "rollout_size": ppo.rollout_size,
            "epochs": ppo.epochs,
            "steps": options.steps,
            "max_new_tokens": config.sampling.max_new_tokens,
            "missing_eos_penalty": ppo.missing_eos_penalty,
            "kl_coefficient": ppo.kl_coefficient,
        },
    )


def our_side(where: Path) -> None:
    from training.rlhf import ppo

    run_dir = RunDir(where)
    floor = rss()
    started = time.perf_counter()
    outcome = ppo.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))
    whole = time.perf_counter() - started
    lines = [
        {"kl": line["values"]["kl"], "reward": line["values"]["reward/mean"]}
        for line in run_dir.progress_after(0)
        if "reward/mean" in line["values"]
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {"memory": peak - floor, "peak": peak, "lines": lines, "whole": whole}
    write_json(where / "measured.json", measured | {"seconds": outcome["train_seconds"]})


def rss() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
