"""A run that was stopped, killed or met a full disk ends with the very weights of one that ran through."""

import hashlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import (  # noqa: E402
    ROOT,
    environment,
    run_child,
    start_child,
    write_run,
)
from training.rlhf.run_dir import (  # noqa: E402
    EXIT_CANCELLED,
    EXIT_COMPLETE,
    EXIT_CRASHED,
    RunDir,
    read_jsonl,
)

Child = subprocess.Popen[str]
LORA = {"kind": "lora", "lora_rank": 4, "lora_dropout": 0.1}  # dropout: the random state matters
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo"},
    "dpo-lora": {"method": "dpo", "tuning": LORA},
    "reward": {"method": "reward_model", "rankings": 12},
    "reward-lora": {"method": "reward_model", "rankings": 12, "tuning": LORA},
}
# 10 steps an epoch or so, a checkpoint each 3 steps: stops fall within epochs and between checkpoints.
TRAINING = {"epochs": 6.0, "save_every": 3}


@pytest.fixture(scope="module")
def uninterrupted(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDir]:
    """The same runs without a break, in one process for all."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for name, config in RUNS.items():
        write_run(folder / name, model=tiny_policy, training=TRAINING, **config)
    code = (
        "import sys; from training.rlhf.__main__ import main; sys.exit(max(main([p]) for p in sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(folder / name) for name in RUNS)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == EXIT_COMPLETE, done.stderr
    return lambda name: RunDir(folder / name)


def weights(run_dir: RunDir) -> str:
    return hashlib.sha256((run_dir.model / "model.safetensors").read_bytes()).hexdigest()


def wait_for_step(run_dir: RunDir, step: int, child: Child, *, checkpoint: bool = False) -> None:
    """Until training is past the step; with `checkpoint`, until a checkpoint of it or later is whole too."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        saved = run_dir.last_checkpoint()
        is_saved = saved is not None and int(saved.name.rpartition("-")[2]) >= step
        if any(line["step"] >= step for line in run_dir.progress_after(0)) and (is_saved or not checkpoint):
            return
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def stop(run_dir: RunDir, child: Child) -> None:
    wait_for_step(run_dir, 7, child)
    child.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    output, _ = child.communicate(timeout=60)
    assert child.returncode == EXIT_CANCELLED, output
    assert time.monotonic() - asked < 5
    saved = run_dir.last_checkpoint()
    assert saved is not None
    assert int(saved.name.rpartition("-")[2]) >= 7
    assert not run_dir.error.exists()


def kill(run_dir: RunDir, child: Child) -> None:
    wait_for_step(run_dir, 22, child, checkpoint=True)
    child.kill()
    child.communicate(timeout=60)
    torn = run_dir.checkpoints / "checkpoint-1000"  # as if it had died in the middle of this one
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")


def fill_disk(run_dir: RunDir, child: Child) -> None:
    """From now on no file may grow as large as a checkpoint's: to a process the same as a full disk."""
    wait_for_step(run_dir, 9, child, checkpoint=True)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    output, _ = child.communicate(timeout=60)
    assert child.returncode == EXIT_CRASHED, output
    kept = run_dir.last_checkpoint()
    assert kept is not None
    error = json.loads(run_dir.error.read_text())
    assert "disk is full" in error["what"]
    assert f"It goes on from {kept.name}." in error["do"]
    assert "Free space" in error["do"]
    incomplete = [p for p in run_dir.checkpoints.iterdir() if not (p / "complete.json").exists()]
    assert not incomplete
    assert not run_dir.result.exists()


@pytest.mark.parametrize(
    ("name", "interruptions"),
    [
        ("dpo", [stop, kill]),
        ("dpo-lora", [stop]),
        ("reward", [fill_disk]),
        ("reward-lora", [stop, kill]),
    ],
    ids=["dpo", "dpo-lora", "reward-disk-full", "reward-lora"],
)
def test_an_interrupted_run_goes_on_bit_exactly(
    name: str,
    interruptions: list[Callable[[RunDir, Child], None]],
    uninterrupted: Callable[[str], RunDir],
    tiny_policy: Path,
    tmp_path: Path,
) -> None:
    run_dir = write_run(tmp_path / name, model=tiny_policy, training=TRAINING, **RUNS[name])
    for interrupt in interruptions:
        child = start_child(run_dir)
        try:
            interrupt(run_dir, child)
        finally:
            child.kill()
            child.communicate()
        assert not run_dir.result.exists()
        assert len(list(run_dir.checkpoints.glob("checkpoint-*/complete.json"))) <= 2

    done = run_child(run_dir)
    assert done.returncode == EXIT_COMPLETE, done.stdout
    assert weights(run_dir) == weights(uninterrupted(name))
    numbers = [line["seq"] for line in read_jsonl(run_dir.progress)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not run_dir.error.exists()
    assert not run_dir.checkpoints.exists()  # nothing resumes a complete run


def test_a_complete_run_says_what_it_made_and_of_what(
    uninterrupted: Callable[[str], RunDir], tiny_policy: Path
) -> None:
    run_dir = uninterrupted("dpo-lora")
    result = json.loads(run_dir.result.read_text())
    pairs = (run_dir.data / "pairs.train.jsonl").read_bytes()
    assert result["lineage"] == json.loads((run_dir.model / "lineage.json").read_text())
    assert result["lineage"]["parent"] == str(tiny_policy)
    assert result["lineage"]["files"]["pairs.train.jsonl"] == hashlib.sha256(pairs).hexdigest()
    assert result["lineage"]["versions"]["trl"]
    assert result["rows"]["train"] == {"kept": 40, "dropped": 0}
    assert result["evaluation"] == json.loads(run_dir.evaluation.read_text())
    assert len(list(read_jsonl(run_dir.completions))) == 4  # two prompts, new and old
    lines = list(read_jsonl(run_dir.progress))
    trained = [line["values"] for line in lines if "loss" in line["values"]]
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen", "grad_norm"} <= trained[0].keys()
    assert [line["step"] for line in lines if "loss" in line["values"]] == list(range(1, 61))
    assert any("eval_rewards/accuracies" in line["values"] for line in lines)
    assert (run_dir.path / "adapter" / "adapter_model.safetensors").exists()
