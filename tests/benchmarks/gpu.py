"""How well an accelerator is used: SFT, DPO and PPO on the shape of Llama 3 8B, QLoRA on one of 65B.

    python -m tests.benchmarks.gpu [--shape 8b] [--steps 6]        make bench-gpu

The weights are random, in bf16, and made on the device; LoRA on all linear layers is trained, since full
fine-tuning of 8 billion fp32 weights takes 128 GB. Rows are as long as --length. The trainers are the
product's own. MFU is the share of the device's dense bf16 peak that the arithmetic of the model itself would
take: 4 N operations a token for LoRA (forward 2 N, gradients of activations 2 N; those of the frozen weights
are not computed), plus attention (6 L d s a token with causal halving, 2204.02311, appendix B, as LoRA's
share of 12 L d s); what gradient checkpointing computes twice does not count. DPO reads its reference before
training, PPO's update reads policy and value model. Without an accelerator it says so and ends; with
`--anywhere` and the shape "tiny" it runs on a CPU to see that it works. The last line is one JSON object.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from training.rlhf.config import RunConfig, Sampling, Training, Tuning
from training.rlhf.method_settings import Ppo, RewardFunction
from training.rlhf.run_dir import ProgressWriter, RunDir, write_json

# Dense bf16 operations a second, by what a device calls itself: NVIDIA's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
WARM_UP = 2  # steps that do not count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=["8b", "65b", "tiny"], default="8b")
    parser.add_argument("--large", choices=["65b", "tiny"], default="65b", help="the shape for QLoRA")
    parser.add_argument("--steps", type=int, default=4, help="that are measured")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--only", choices=["sft", "dpo", "ppo", "qlora"], action="append")
    parser.add_argument("--anywhere", action="store_true", help="run without an accelerator as well")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not options.anywhere:
        print("There is no accelerator on this machine: nothing was measured.", flush=True)
        print(json.dumps({"accelerator": None}), flush=True)
        return 0
    rows = []
    for name, measure in MEASURES.items():
        if options.only and name not in options.only:
            continue
        try:
            with tempfile.TemporaryDirectory(prefix="ratchet-gpu-") as folder:
                rows.append({"method": name, **measure(Path(folder), options)})
        except torch.OutOfMemoryError as error:
            rows.append({"method": name, "error": str(error).splitlines()[0]})
        _forget()
        print(json.dumps(rows[-1]), flush=True)
    print(_table(rows), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(json.dumps({"accelerator": device, "shape": options.shape, "rows": rows}), flush=True)
    return 0


def sft(folder: Path, options: argparse.Namespace, *, quantised: bool = False) -> dict[str, Any]:
    from training.rlhf import loading
    from training.rlhf.likelihood import Labelled, trainer_of

    shape = options.large if quantised else options.shape
    kind = "qlora" if quantised else "lora"
    run_dir, config = _run(folder, options, method="sft", shape=shape, kind=kind)
    rng = random.Random(0)
    rows = [
        Labelled([rng.randrange(2, 700) for _ in range(options.length)], start=options.length // 4)
        for _ in range(options.batch * (options.steps + WARM_UP))
    ]
    trainer = trainer_of(
        model=_model(shape, quantised=quantised),
        tokenizer=loading.load_tokenizer(config.model),
        train=rows,
        test=[],
        config=config,
        run_dir=run_dir,
    )
    seconds = _seconds_a_step(trainer, run_dir)
    return _figures(shape, tokens=options.batch * options.length, seconds=seconds, length=options.length)


def qlora(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    return sft(folder, options, quantised=True)


def dpo(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from training.rlhf import dpo as method
    from training.rlhf import loading
    from training.rlhf.data import Comparison, Element

    run_dir, config = _run(folder, options, method="dpo", shape=options.shape, kind="lora")
    tokenizer = loading.load_tokenizer(config.model)
    pairs = max(1, options.batch // 2)
    rows = [
        Element(
            table="pairs",
            line=number + 1,
            prompt=[{"role": "user", "content": "Tell a story."}],
            completions=[_said(tokenizer, options.length, seed=2 * number + side) for side in (0, 1)],
            comparisons=[Comparison(chosen=0, rejected=1, margin=0.0, weight=1.0, p=1.0)],
        )
        for number in range(pairs * (options.steps + WARM_UP))
    ]
    trainer = method.make_trainer(
        model=_model(options.shape),
        tokenizer=tokenizer,
        train=rows,
        test=[],
        config=config,
        run_dir=run_dir,
    )
    lengths = [len(row["chosen_ids"]) + len(row["prompt_ids"]) for row in cast(Any, trainer.train_dataset)]
    length = round(statistics.mean(lengths))
    seconds = _seconds_a_step(trainer, run_dir)
    return _figures(options.shape, tokens=2 * pairs * length, seconds=seconds, length=length)


def ppo(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from training.rlhf import loading
    from training.rlhf import ppo as method
    from training.rlhf.ppo_parts import ppo_models
    from training.rlhf.rewards import load_rewards

    answer = options.length // 4
    run_dir, config = _run(folder, options, method="ppo", shape=options.shape, kind="lora", answer=answer)
    tokenizer = loading.load_tokenizer(config.model)
    policy = _model(options.shape)
    policy.generation_config.eos_token_id = None
    models = ppo_models.build(policy, config, tokenizer, value_from=None)
    updates: list[float] = []
    read: list[int] = []  # tokens of the rollout

    class Timed(method.Loop):
        def update(self, drawn: Any, *, number: int) -> list[float]:
            started = _now()
            found = super().update(drawn, number=number)
            updates.append(_now() - started)
            read.append(sum(map(len, (*drawn.prompts, *drawn.completions))))
            return found

    loop = Timed(
        run_dir, config, ProgressWriter(run_dir), models=models, tokenizer=tokenizer,
        prompts=[[{"role": "user", "content": f"Story {number}"}] for number in range(64)],
        rewards=load_rewards(config),
    )  # fmt: skip
    started = _now()
    loop.run()
    whole = _now() - started
    shares = [
        line["values"]["time/generation_share"]
        for line in run_dir.progress_after(0)
        if "time/generation_share" in line["values"]
    ]
    kept = slice(loop.updates, None)  # the first rollout warms up
    seconds = statistics.mean(updates[kept]) * loop.updates
    tokens = round(statistics.mean(read[kept])) * config.ppo.epochs * 2  # policy and value model
    figures = _figures(options.shape, tokens=tokens, seconds=seconds, length=answer)
    return figures | {
        "generation_share": round(statistics.mean(shares[1:]), 3),
        "rollout_seconds": round(whole / loop.steps, 2),
    }


MEASURES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "sft": sft,
    "dpo": dpo,
    "ppo": ppo,
    "qlora": qlora,
}


def _run(
    folder: Path, options: argparse.Namespace, *, method: str, shape: str, kind: Any, answer: int = 128
) -> tuple[RunDir, RunConfig]:
    from tests.benchmarks.gpu_shapes import SHAPES, store_outline

    run_dir = RunDir(folder / "run")
    run_dir.data.mkdir(parents=True)
    config = RunConfig(
        method=method,
        model=str(store_outline(SHAPES[shape], folder / "model")),
        tuning=Tuning(kind=kind, lora_rank=16),
        training=Training(
            learning_rate=1e-5,
            batch_size=max(1, options.batch // (2 if method == "dpo" else 1)),
            max_steps=options.steps + WARM_UP if method != "ppo" else 3,
            max_length=8192,
            warmup_ratio=0.0,
            bf16=True,
            gradient_checkpointing=shape != "tiny",
            log_every=1,
            save_every=10**6,
        ),
        sampling=Sampling(max_new_tokens=answer, batch_size=64),
        ppo=Ppo(rollout_size=64, epochs=2, most_kl=1e6, least_entropy=0.0, least_eos_rate=0.0),
        rewards=(RewardFunction(name="short", kind="length", options={"target": 64}),)
        if method == "ppo"
        else (),
    )
    write_json(run_dir.config, config.to_json())
    return run_dir, config


def _model(shape: str, *, quantised: bool = False) -> Any:
    import torch

    from tests.benchmarks.gpu_shapes import SHAPES, model_of, quantised_model_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return (quantised_model_of if quantised else model_of)(SHAPES[shape], device)


def _said(tokenizer: Any, tokens: int, *, seed: int) -> list[Any]:
    """A text of about so many tokens."""
    rng = random.Random(seed)
    ids = [rng.randrange(40, 700) for _ in range(tokens - 32)]
    return [{"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}]


def _seconds_a_step(trainer: Any, run_dir: RunDir) -> float:
    """The median after the warm-up, between the ends of steps."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(_now())

    from training.rlhf import fitting

    trainer.add_callback(Clock())
    fitting.fit(trainer, run_dir=run_dir, progress=ProgressWriter(run_dir))
    steps = [after - before for before, after in itertools.pairwise(ends)]
    return statistics.median(steps[WARM_UP - 1 :])


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _figures(shape: str, *, tokens: int, seconds: float, length: int) -> dict[str, Any]:
    import torch

    from tests.benchmarks.gpu_shapes import SHAPES

    one = SHAPES[shape]
    inner = one.hidden * (one.hidden * 2 + 2 * one.hidden * one.key_value_heads // one.heads)
    weights = one.layers * (inner + 3 * one.hidden * one.intermediate) + one.hidden * one.vocabulary
    operations = 4 * weights + 4 * one.layers * one.hidden * length  # a token
    on_gpu = torch.cuda.is_available()
    peak = (
        next((p for name, p in PEAKS.items() if name in torch.cuda.get_device_name()), None)
        if on_gpu
        else None
    )
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    return {
        "shape": shape,
        "step_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds),
        "mfu": round(tokens * operations / seconds / peak, 3) if peak else None,
        "memory_gb": round(memory, 1) if memory is not None else None,
    }


def _forget() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _table(rows: list[dict[str, Any]]) -> str:
    columns = ("method", "shape", "tokens_per_second", "mfu", "memory_gb", "generation_share", "error")
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(str(row.get(column, "")) for column in columns) for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
