"""The step on the longest batch before the start: it changes nothing, and refuses what would not work."""

import json
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from tests.training_rlhf.conftest import MakeRun, run_child, write_rows  # noqa: E402
from training.rlhf import loading, recipe, rendering  # noqa: E402
from training.rlhf.__main__ import settled  # noqa: E402
from training.rlhf.checks import memory, rehearsal  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.failures import NotBegun  # noqa: E402
from training.rlhf.run_dir import EXIT_NOT_BEGUN, ProgressWriter, RunDir  # noqa: E402

VOWELS = {"name": "vowels", "kind": "regex", "options": {"pattern": "[aeiou]", "mode": "count"}}
# Dropout in adapters: chance is drawn on in every step, so that a draw too many would show.
LORA = {"kind": "lora", "lora_rank": 4, "lora_dropout": 0.2}
FEW = {"max_steps": 3, "batch_size": 4}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"tuning": LORA},
    "dpo": {
        "training": FEW
        | {"gradient_accumulation": 2, "group_by_length": True, "gradient_checkpointing": True}
    },
    "reward_model": {"rankings": 8, "ratings": 8},
    "kto": {"ratings": 40, "tuning": LORA},
    "rloo": {"rewards": [VOWELS], "rloo": {"completions_per_prompt": 2}},
    "grpo": {"rewards": [VOWELS], "grpo": {"completions_per_prompt": 2, "iterations": 2}, "tuning": LORA},
    "ppo": {"rewards": [VOWELS], "ppo": {"rollout_size": 4, "epochs": 2}},
    "distillation": {"distillation": {"system_prompt": "Be kind.", "on_policy": 0.5}},
}


def make(make_run: MakeRun, method: str) -> RunDir:
    config = {"training": FEW} | RUNS[method]
    run_dir = make_run(method, **config)
    rows = [{"prompt": [{"role": "user", "content": "Say it! " * (1 + number)}]} for number in range(6)]
    write_rows(run_dir.data / "prompts.train.jsonl", rows)
    return run_dir


def train(run_dir: RunDir) -> None:
    torch.manual_seed(3)  # as a process begins: chance, wherever it stands
    random.seed(3)
    config = settled(RunConfig.load(run_dir.config))
    recipe.train(run_dir, config, ProgressWriter(run_dir))


def lines_of(run_dir: RunDir) -> list[dict[str, float]]:
    timed = ("runtime", "seconds", "per_second", "rehearsal/", "time/", "epoch", "step_time")
    told = [line["values"] for line in run_dir.progress_after(0)]
    return [
        found
        for values in told
        if (found := {n: v for n, v in values.items() if not any(part in n for part in timed)})
    ]


@pytest.mark.parametrize("method", RUNS)
def test_a_run_ends_in_the_same_bits_with_it_and_without(
    method: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed, other = make(make_run, method), make(make_run, method)
    train(rehearsed)
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal, "of_trainer", lambda *args, **kwargs: None)
        patched.setattr("training.rlhf.checks.ppo_rehearsal.of_loop", lambda loop: None)
        train(other)
    one, two = (load_file(found.model / "model.safetensors") for found in (rehearsed, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert lines_of(rehearsed) == lines_of(other)

    lineage = json.loads((rehearsed.model / "lineage.json").read_text())
    kept = rendering.template_hash(loading.load_tokenizer(str(rehearsed.model)))
    assert lineage["template_hash"] == kept  # what it was trained with is what it is served with

    found = json.loads(rehearsed.rehearsal.read_text())
    assert found["rehearsal/rows"] >= 4
    assert found["rehearsal/peak_memory_bytes"] > 1e6
    said = [line for line in rehearsed.progress_after(0) if "rehearsal/seconds" in line["values"]]
    assert len(said) == 1
    assert said[0]["step"] == 0
    assert "longest batch" in said[0]["message"]
    assert not other.rehearsal.exists()


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """The process may take that many bytes more than it has: the system refuses the rest."""
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_a_batch_that_does_not_fit_is_refused_with_what_to_change(make_run: MakeRun) -> None:
    run_dir = make_run("sft", pairs=600, training={"batch_size": 512, "max_steps": 2})
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Write {number}."}],
            "completion": [{"role": "assistant", "content": "a" * 200}],
        }
        for number in range(600)
    ]
    write_rows(run_dir.data / "demonstrations.train.jsonl", rows)
    with little_memory(300_000_000), pytest.raises(NotBegun) as refused:
        train(run_dir)
    assert "does not fit into memory: 512 texts" in refused.value.what
    for words in ("batch_size 256 with gradient_accumulation 2", "gradient_checkpointing", "QLoRA"):
        assert words in refused.value.do
    said = [line["message"] for line in run_dir.progress_after(0)]
    assert not any(message.startswith("Training") for message in said)
    assert not run_dir.rehearsal.exists()


def test_weights_that_overflow_are_refused_before_the_first_step(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(1e30)
        model.model.layers[0].mlp.down_proj.weight.fill_(1e30)
    model.save_pretrained(tmp_path / "huge")
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(tmp_path / "huge")
    run_dir = make_run("sft", model=str(tmp_path / "huge"), training=FEW)
    done = run_child(run_dir)
    assert done.returncode == EXIT_NOT_BEGUN, done.stdout
    error = json.loads(run_dir.error.read_text())
    assert "of the very first step is no number" in error["what"]
    assert run_dir.last_checkpoint() is None


def test_the_highest_mark_is_that_of_the_part_that_was_measured() -> None:
    memory.begin()
    before = memory.peak_bytes()
    large = torch.ones(60_000_000)
    assert memory.peak_bytes() - before > 200_000_000
    del large
    memory.reset()
    assert memory.peak_bytes() < memory.highest_bytes()
