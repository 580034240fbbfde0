"""A PPO run that was stopped goes on bit for bit: between two steps, within a step, and while it draws."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file

from tests.training_rlhf.conftest import ROOT, MakeRun, environment
from tests.training_rlhf.test_ppo import LORA, Letters, loaded, ppo_run, steps_of, train
from training.rlhf import checkpoints, ppo, progress
from training.rlhf.config import RunConfig
from training.rlhf.losses.policy_gradient import RunningScale
from training.rlhf.ppo_parts import ppo_state
from training.rlhf.ppo_parts.ppo_state import State
from training.rlhf.progress import Cancelled
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds.reward_interface import RewardBatch
from training.rlhf.run_dir import EXIT_CANCELLED, ProgressWriter, RunDir
from training.rlhf.sampling import Sampled

# A whole process: signals, a handler that waits for what is worth saving, and an end by exit code.
CHILD = """
import sys
from training.rlhf.progress import Cancelled, listen_for_stop
listen_for_stop()
from tests.training_rlhf.test_ppo import Letters
from training.rlhf import ppo
from training.rlhf.config import RunConfig
from training.rlhf.run_dir import EXIT_CANCELLED, ProgressWriter, RunDir
run_dir = RunDir(sys.argv[1])
try:
    ppo.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir), rewards=Letters())
except Cancelled:
    sys.exit(EXIT_CANCELLED)
"""
SETTINGS: dict[str, Any] = {
    "ppo": {"rollout_size": 16, "epochs": 2, "kl_target": 0.01, "kl_horizon": 100},
    "training": {"batch_size": 4, "max_steps": 5, "save_every": 2, "learning_rate": 3e-3},
}


@pytest.fixture(autouse=True)
def nobody_asks_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress._Stop, "requested", False)


class StopsAt(Letters):
    """As a signal would, asks for a stop while a rollout is scored: it is heard before it is read."""

    def __init__(self, *calls: int) -> None:
        self.calls, self.stops = 0, calls
        self.value_from = None

    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
        self.calls += 1
        progress._Stop.requested = self.calls in self.stops
        return super().score(prompts, samples)


def stop_in_update(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Ask for a stop once so many updates are done."""
    update, done = ppo.Loop.update, [0]

    def counting(self: ppo.Loop, *arguments: Any, **options: Any) -> list[float]:
        done[0] += 1
        progress._Stop.requested = done[0] == after
        return update(self, *arguments, **options)

    monkeypatch.setattr(ppo.Loop, "update", counting)


def told(run_dir: RunDir) -> list[dict[str, float]]:
    """Every number of every step but for times."""
    return [{name: one for name, one in step.items() if "time" not in name} for step in steps_of(run_dir)]


def trained(run_dir: RunDir) -> dict[str, bytes]:
    """All weights: the policy's as saved, and the value model's of the last checkpoint."""
    last = run_dir.last_checkpoint()
    assert last is not None
    files = (run_dir.model / "model.safetensors", last / "weights.safetensors",
             last / "optimizer.safetensors")  # fmt: skip
    return {
        f"{file.name}/{name}": weight.numpy().tobytes()
        for file in files
        for name, weight in load_file(file).items()
    }


def go_on(run_dir: RunDir) -> None:
    progress._Stop.requested = False
    train(run_dir)


def while_it_scores(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Cancelled):
        train(run_dir, StopsAt(4))
    assert last_of(run_dir) == ("checkpoint-3", None)  # 3 are done, and the fourth is drawn anew


def within_updates(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Cancelled):
        stop_in_update(patch, after=8 + 3)
        train(run_dir)
    assert last_of(run_dir) == ("checkpoint-1", 3)
    progress._Stop.requested = False
    with monkeypatch.context() as patch, pytest.raises(Cancelled):  # the same step again, a little further
        stop_in_update(patch, after=2)
        train(run_dir)
    assert last_of(run_dir) == ("checkpoint-1", 5)


def between_steps(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Cancelled):
        stop_in_update(patch, after=3 * 8)
        train(run_dir)
    assert last_of(run_dir) == ("checkpoint-3", None)


def at_the_start(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Cancelled):
        train(run_dir, StopsAt(1))
    assert last_of(run_dir) == ("checkpoint-0", None)
    progress._Stop.requested = False
    with pytest.raises(Cancelled):  # nothing new to save
        train(run_dir, StopsAt(1))


def last_of(run_dir: RunDir) -> tuple[str, int | None]:
    """The last checkpoint, and how many updates its rollout has seen, if it holds one."""
    last = run_dir.last_checkpoint()
    assert last is not None
    state = json.loads((last / "state.json").read_text())
    assert (last / "rollout.safetensors").exists() is (state["figures"] is not None)
    return last.name, len(state["notes"]) if state["figures"] is not None else None


@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    tuning: dict[str, Any], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = ppo_run(make_run, tuning=tuning, **SETTINGS)
    train(through)
    assert len(told(through)) == 5
    for interrupt in (at_the_start, while_it_scores, within_updates, between_steps):
        run_dir = ppo_run(make_run, tuning=tuning, **SETTINGS)
        interrupt(run_dir, monkeypatch)
        assert not run_dir.model.exists()
        go_on(run_dir)
        assert told(run_dir) == told(through)
        assert trained(run_dir) == trained(through)


def test_a_signal_ends_a_run_that_then_is_saved(make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run, **SETTINGS | {"training": SETTINGS["training"] | {"max_steps": 1000}})
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run_dir.path)],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not any(line["step"] >= 3 for line in run_dir.progress_after(0)):
            assert time.monotonic() < deadline and child.poll() is None, child.communicate()[0]
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=20)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == EXIT_CANCELLED, output
    last, _ = last_of(run_dir)
    assert int(last.rpartition("-")[2]) >= 3
    assert "the checkpoint is saved" in list(run_dir.progress_after(0))[-1]["message"]


def test_the_last_two_checkpoints_are_kept_and_nothing_of_a_complete_run_is_trained_again(
    make_run: MakeRun,
) -> None:
    run_dir = ppo_run(make_run, **SETTINGS)
    train(run_dir)
    assert {path.name for path in run_dir.checkpoints.iterdir()} == {"checkpoint-4", "checkpoint-5"}
    weights = trained(run_dir)
    shutil.rmtree(run_dir.model)  # as if it had been stopped before the model was saved
    train(run_dir)
    assert len(steps_of(run_dir)) == 5
    assert trained(run_dir) == weights


def test_a_checkpoint_that_a_full_disk_cuts_short_is_removed_and_the_one_before_is_kept(
    make_run: MakeRun,
) -> None:
    run_dir = ppo_run(make_run, **SETTINGS)

    class FillsTheDisk(Letters):
        calls = 0

        def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
            self.calls += 1
            if self.calls == 4:  # no file may grow as large as the weights any more
                resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
            return super().score(prompts, samples)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(checkpoints.CheckpointNotSaved) as caught:
            train(run_dir, FillsTheDisk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.disk_full
    assert caught.value.step == 4
    assert caught.value.kept == run_dir.checkpoints / "checkpoint-2"
    assert [path.name for path in run_dir.checkpoints.iterdir()] == ["checkpoint-2"]


def state_of(run_dir: RunDir) -> tuple[State, Callable[[State], Path]]:
    models, _, _ = loaded(run_dir)
    optimizer = torch.optim.AdamW(models.trained.values())
    state = State(kl_coefficient=0.1, step=3, scale=RunningScale(count=2.0, mean=1 / 3, squares=0.1))
    return state, lambda one: ppo_state.save(run_dir, one, trained=models.trained, optimizer=optimizer)


def test_a_replacement_that_a_crash_cut_in_two_is_put_back(make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run)
    state, save = state_of(run_dir)
    folder = save(state)
    assert save(state) == folder
    assert [path.name for path in run_dir.checkpoints.iterdir()] == ["checkpoint-3"]
    folder.rename(run_dir.checkpoints / "replaced")  # and it died before the new one took the place
    assert run_dir.last_checkpoint() is None
    ppo_state.put_back(run_dir)
    assert run_dir.last_checkpoint() == folder
    models, _, _ = loaded(run_dir)
    again = ppo_state.load(
        folder, trained=models.trained, optimizer=torch.optim.AdamW(models.trained.values())
    )
    assert again == state


def test_a_checkpoint_holds_nothing_that_can_run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = ppo_run(make_run, **SETTINGS)
    within_updates(run_dir, monkeypatch)
    names = {path.name for path in run_dir.checkpoints.rglob("*") if path.is_file()}
    assert names == {"weights.safetensors", "optimizer.safetensors", "rollout.safetensors", "state.json",
                     "complete.json"}  # fmt: skip


def test_a_checkpoint_is_saved_when_the_last_one_is_long_ago(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.rlhf.fitting.SAVE_SECONDS", -1.0)
    run_dir = ppo_run(make_run, training=SETTINGS["training"] | {"max_steps": 3, "save_every": 50})
    config = RunConfig.load(run_dir.config)
    ppo.train(run_dir, config, ProgressWriter(run_dir), rewards=Letters())
    assert {path.name for path in run_dir.checkpoints.iterdir()} == {"checkpoint-2", "checkpoint-3"}
