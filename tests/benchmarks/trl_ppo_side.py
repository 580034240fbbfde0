"""The other side of ppo_against_trl: TRL 1.12's PPO, in an environment of its own. Imports nothing of ours.

python trl_ppo_side.py FOLDER      reads FOLDER/settings.json, writes FOLDER/measured.json
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def rss() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Collect(TrainerCallback):
    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "objective/kl" in logs:
            self.lines.append({"kl": logs["objective/kl"], "reward": logs["objective/scores"]})


def main() -> None:
    folder = Path(sys.argv[1])
    said = json.loads((folder / "settings.json").read_text())
    floor = rss()
    tokenizer = AutoTokenizer.from_pretrained(said["policy"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(said["policy"]) for _ in range(2))
    reward, value = (AutoModelForSequenceClassification.from_pretrained(said["reward"]) for _ in range(2))
    prompts = [json.loads(line)["prompt"] for line in (folder / "data" / "prompts.train.jsonl").open()]
    rows = [
        {"input_ids": tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)}
        for messages in prompts
    ]
    arguments = PPOConfig(
        output_dir=str(folder / "trl"),
        seed=said["seed"],
        learning_rate=said["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=0,
        max_grad_norm=1.0,
        per_device_train_batch_size=said["rollout_size"],  # what TRL calls a batch is a rollout
        gradient_accumulation_steps=1,
        num_mini_batches=said["rollout_size"] // said["update_size"],
        num_ppo_epochs=said["epochs"],
        total_episodes=said["rollout_size"] * said["steps"],
        local_rollout_forward_batch_size=said["rollout_size"],
        response_length=said["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=said["missing_eos_penalty"],
        kl_coef=said["kl_coefficient"],
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    collect = Collect()
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:8]),
        callbacks=[collect],
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {"seconds": seconds, "memory": peak - floor, "peak": peak, "lines": collect.lines}
    (folder / "measured.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
