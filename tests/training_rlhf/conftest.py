"""A policy small enough to train in a second: a random Llama with a tokenizer of bytes, saved in a folder."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.rlhf.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies here belongs to the GPU side: collecting it imports torch."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.training)


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny policy. About 30,000 weights."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("policy")
    save_tiny_policy(folder)
    return folder


def save_tiny_policy(folder: Path, *, seed: int = 0) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def in_bf16(policy: Path, folder: Path) -> Path:
    """The same policy as most are published."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(policy, folder)
    AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def stored_dtypes(folder: Path) -> set[Any]:
    """The types of the numbers that a model's folder holds."""
    from safetensors.torch import load_file

    files = folder.glob("*.safetensors")
    return {weight.dtype for file in files for weight in load_file(file).values()}


def pair_row(number: int, **columns: Any) -> dict[str, Any]:
    """A row of `pairs`: people like the answer with a name."""
    pick = random.Random(number)
    name = pick.choice(["Ada", "Bo", "Cy"])
    row = {
        "prompt": [{"role": "user", "content": f"Say hello, {number}."}],
        "chosen": [{"role": "assistant", "content": f"Hello {name}!" + "!" * pick.randrange(8)}],
        "rejected": [{"role": "assistant", "content": "no" * pick.randrange(1, 8)}],
        "margin": 0.0,
        "weight": 1.0,
        "p": 1.0,
        "strength": 1,
    }
    return row | columns


def ranking_row(number: int, ranks: list[int], **columns: Any) -> dict[str, Any]:
    row = {
        "prompt": [{"role": "user", "content": f"Count to {number}."}],
        "completions": [
            [{"role": "assistant", "content": f"{place} " * place}] for place in range(1, len(ranks) + 1)
        ],
        "ranks": ranks,
        "weight": 1.0,
    }
    return row | columns


def rating_row(number: int, **columns: Any) -> dict[str, Any]:
    """A row of `ratings`: of a text as in `pair_row`, with a name (4 or 5) or without (1 to 3)."""
    pair, pick = pair_row(number), random.Random(f"rating {number}")
    row = {
        "prompt": pair["prompt"],
        "completion": pair["chosen"] if number % 2 else pair["rejected"],
        "rating": pick.choice([4, 5] if number % 2 else [1, 2, 3]),
        "criterion": "overall",
        "rater": 1 + number % 3,
        "weight": 1.0,
    }
    return row | columns


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(
    folder: Path,
    *,
    model: Path | str,
    method: str,
    pairs: int = 40,
    rankings: int = 0,
    ratings: int = 0,
    **config: Any,
) -> RunDir:
    """A run folder as a worker writes it; held out is a fifth of what is trained on."""
    run_dir = RunDir(folder)
    for split, start, share in (("train", 0, 1.0), ("test", 1000, 0.2)):
        rows = [pair_row(start + number) for number in range(int(pairs * share))]
        write_rows(run_dir.data / f"pairs.{split}.jsonl", rows)
        ranked = [ranking_row(start + number, [1, 2, 2, 3]) for number in range(int(rankings * share))]
        write_rows(run_dir.data / f"rankings.{split}.jsonl", ranked)
        rated = [rating_row(start + number) for number in range(int(ratings * share))]
        write_rows(run_dir.data / f"ratings.{split}.jsonl", rated)
    prompts = [{"prompt": pair_row(1000 + number)["prompt"]} for number in range(2)]
    write_rows(run_dir.data / "prompts.test.jsonl", prompts)
    training = {"batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "save_every": 3}
    recipe = {"method": method, "model": str(model), "sampling": {"max_new_tokens": 4}} | config
    recipe["training"] = training | config.get("training", {})
    run_dir.config.write_text(json.dumps(recipe), encoding="utf-8")
    return run_dir


MakeRun = Callable[..., RunDir]


@pytest.fixture
def make_run(tmp_path: Path, tiny_policy: Path) -> MakeRun:
    """Writes run folders for the tiny policy: `make_run("dpo", pairs=40, training={"epochs": 2})`."""
    folders = (tmp_path / f"run-{number}" for number in itertools.count(1))

    def make(method: str, **config: Any) -> RunDir:
        recipe: dict[str, Any] = {"method": method, "model": tiny_policy}
        return write_run(next(folders), **(recipe | config))

    return make


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def start_child(run_dir: RunDir, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """The real child process: `python -m training.rlhf RUN_DIR`."""
    return subprocess.Popen(
        [sys.executable, "-m", "training.rlhf", str(run_dir.path), *arguments],
        cwd=ROOT,
        env=environment() | options.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def run_child(run_dir: RunDir, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    child = start_child(run_dir, *arguments, **options)
    output, _ = child.communicate(timeout=120)
    return subprocess.CompletedProcess(child.args, child.returncode, output)
