"""A run that was stopped, killed or met a full disk ends with the very weights of one that ran through."""

import hashlib
import json
import resource
import shutil
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

import torch  # noqa: E402

from tests.training_rlhf.conftest import (  # noqa: E402
    ROOT,
    environment,
    run_child,
    start_child,
    write_run,
)
from training.rlhf import dpo, fitting, loading, recipe  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.data import read_for_dpo  # noqa: E402
from training.rlhf.fitting import GroupedByLength  # noqa: E402
from training.rlhf.run_dir import (  # noqa: E402
    EXIT_CANCELLED,
    EXIT_COMPLETE,
    EXIT_CRASHED,
    ProgressWriter,
    RunDir,
    read_jsonl,
)

Child = subprocess.Popen[str]
LORA = {"kind": "lora", "lora_rank": 4, "lora_dropout": 0.1}  # dropout: the random state matters
# 10 steps an epoch or so, a checkpoint each 3 steps: stops fall within epochs (the first, and a later one)
# and between checkpoints.
TRAINING = {"epochs": 6.0, "save_every": 3}
GROUPED = TRAINING | {"group_by_length": True}
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo", "training": GROUPED},
    "dpo-lora": {"method": "dpo", "tuning": LORA, "training": GROUPED},
    "reward": {"method": "reward_model", "rankings": 12, "ratings": 12, "training": TRAINING},
    "reward-grouped": {
        "method": "reward_model",
        "rankings": 12,
        "training": GROUPED | {"gradient_accumulation": 2},
    },
    "reward-lora": {
        "method": "reward_model",
        "rankings": 12,
        "ratings": 12,
        "reward_learning": {"ranking_loss": "plackett_luce"},
        "tuning": LORA,
        "training": TRAINING,
    },
}


@pytest.fixture(scope="module")
def uninterrupted(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDir]:
    """The same runs without a break, in one process for all."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for name, config in RUNS.items():
        write_run(folder / name, model=tiny_policy, **config)
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
        ("dpo-lora", [stop, kill]),
        ("reward", [fill_disk]),
        ("reward-grouped", [stop, kill]),
        ("reward-lora", [stop, kill]),
    ],
    ids=["dpo", "dpo-lora", "reward-disk-full", "reward-grouped", "reward-lora"],
)
def test_an_interrupted_run_goes_on_bit_exactly(
    name: str,
    interruptions: list[Callable[[RunDir, Child], None]],
    uninterrupted: Callable[[str], RunDir],
    tiny_policy: Path,
    tmp_path: Path,
) -> None:
    run_dir = write_run(tmp_path / name, model=tiny_policy, **RUNS[name])
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
    through = uninterrupted(name)
    assert weights(run_dir) == weights(through)
    heads = [(one.model / "rating_head.json") for one in (run_dir, through)]
    assert [head.exists() for head in heads] == ["ratings" in RUNS[name]] * 2
    assert "ratings" not in RUNS[name] or heads[0].read_bytes() == heads[1].read_bytes()
    numbers = [line["seq"] for line in read_jsonl(run_dir.progress)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not run_dir.error.exists()
    assert not run_dir.checkpoints.exists()  # nothing resumes a complete run


def test_grouped_rows_come_in_an_order_of_seed_and_epoch_alone() -> None:
    lengths = [number * 7 % 40 for number in range(40)]
    through = GroupedByLength(lengths, batch_size=4, seed=7)
    orders = []
    for epoch in range(3):
        through.set_epoch(epoch)
        orders.append(list(through))
    torch.manual_seed(99)  # a process that resumes has drawn other numbers
    resumed = GroupedByLength(lengths, batch_size=4, seed=7)
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert list(GroupedByLength(lengths, batch_size=4, seed=8)) != orders[0]


def test_each_epoch_of_a_training_groups_its_rows_anew(tiny_policy: Path, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, model=tiny_policy, method="dpo", training=GROUPED | {"epochs": 2.0})
    trainer = trainer_of(run_dir)
    seen: list[int] = []
    collate = trainer.data_collator

    def noting(rows: list[dict[str, Any]]) -> Any:
        seen.extend(row["length"] * 1000 + sum(row["prompt_ids"]) % 1000 for row in rows)
        return collate(rows)

    trainer.data_collator = noting
    trainer.train()
    assert sorted(seen[:40]) == sorted(seen[40:])
    assert seen[:40] != seen[40:]


def test_a_checkpoint_is_saved_when_the_last_one_is_long_ago_and_changes_nothing(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GROUPED | {"epochs": 1.0, "save_every": 50}
    runs = [
        write_run(tmp_path / name, model=tiny_policy, method="dpo", tuning=LORA, training=settings)
        for name in ("seldom", "often")
    ]
    train(runs[0])
    assert [path.name for path in runs[0].checkpoints.iterdir()] == ["checkpoint-10"]
    monkeypatch.setattr(fitting, "SAVE_SECONDS", -1.0)
    train(runs[1])
    assert {path.name for path in runs[1].checkpoints.iterdir()} == {"checkpoint-9", "checkpoint-10"}
    assert weights(runs[1]) == weights(runs[0])

    shutil.rmtree(runs[1].checkpoints / "checkpoint-10")
    train(runs[1])
    assert weights(runs[1]) == weights(runs[0])


def train(run_dir: RunDir) -> None:
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))


def trainer_of(run_dir: RunDir) -> dpo.PairTrainer:
    config = RunConfig.load(run_dir.config)
    tokenizer, model = loading.load_tokenizer(config.model), loading.load_policy(config.model)
    loading.fit(model, tokenizer, where=config.model)
    return dpo.make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=read_for_dpo(run_dir, "train"),
        test=[],
        config=config,
        run_dir=run_dir,
    )


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
