"""The disk: what a run will write is known before; a full one ends it with its last checkpoint whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import ROOT, MakeRun, environment, run_child  # noqa: E402
from training.rlhf.checks import disk  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.model_files import causal_config  # noqa: E402
from training.rlhf.run_dir import EXIT_COMPLETE, EXIT_CRASHED, RunDir  # noqa: E402
from training.rlhf.tuning_kinds import trained_share  # noqa: E402

VOWELS = {"name": "vowels", "kind": "regex", "options": {"pattern": "[aeiou]", "mode": "count"}}


def need_of(run_dir: RunDir) -> disk.Need:
    config = RunConfig.load(run_dir.config)
    reads = causal_config(config.model)
    return disk.need(config, reads, trained_share.count(config, reads), steps=20)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_a_checkpoint_takes_what_was_said_it_would(method: str, make_run: MakeRun) -> None:
    run_dir = make_run(
        method,
        pairs=8,
        rewards=[VOWELS] if method == "ppo" else [],
        ppo={"rollout_size": 4},
        training={"max_steps": 2, "save_every": 1},
    )
    shutil.copy(run_dir.data / "prompts.test.jsonl", run_dir.data / "prompts.train.jsonl")
    kept = (
        "import sys, training.rlhf.__main__ as m; m.shutil.rmtree = lambda *a, **k: None; sys.exit(m.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", kept, str(run_dir.path)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == EXIT_COMPLETE, done.stderr
    last = run_dir.last_checkpoint()
    assert last is not None
    found, wanted = _bytes(last), need_of(run_dir)
    assert 0.9 * wanted.checkpoint < found < 1.1 * wanted.checkpoint + 100_000  # and the trainer's own state
    assert 0.9 * wanted.model < (run_dir.model / "model.safetensors").stat().st_size < 1.1 * wanted.model


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_adapters_need_small_checkpoints_and_short_runs_few(make_run: MakeRun) -> None:
    whole, adapters = (
        need_of(make_run("dpo", tuning={"kind": kind, "lora_rank": 2})) for kind in ("full", "lora")
    )
    assert adapters.checkpoint < whole.checkpoint / 4
    assert whole.checkpoints == 3
    assert need_of(make_run("dpo", training={"save_every": 100})).checkpoints == 1


def test_too_small_a_disk_is_refused_with_the_figures(make_run: MakeRun) -> None:
    run_dir = make_run("dpo")
    wanted = need_of(run_dir)
    assert disk.errors(wanted, there=wanted.bytes, run_dir=run_dir) == []
    (error,) = disk.errors(wanted, there=1_000_000, run_dir=run_dir)
    assert f"writes {disk.in_words(wanted.bytes)}" in error["what"]
    assert "1.0 MB are free" in error["what"]
    assert "LoRA" in error["do"]


def on_a_disk_of(size: str, run_dir: RunDir, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The child with its run folder on a file system of that size; it is copied back when the child ends."""
    disk_folder = run_dir.path.parent / "disk"
    script = (
        'mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99; cp -r "$3" "$2/run"; shift 1\n'
        '"$3" -m training.rlhf "$1/run" $4; code=$?; cp -r "$1/run" "$2.after"; exit $code'
    )
    disk_folder.mkdir()
    command = ["unshare", "-rm", "sh", "-c", script, "sh", size, disk_folder, run_dir.path, sys.executable]
    done = subprocess.run(
        [*map(str, command), " ".join(arguments)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    if done.stderr.startswith("unshare:"):
        reason = f"no file system may be mounted here: {done.stderr.strip()}"
        (pytest.fail if os.environ.get("RATCHET_REQUIRE_ALL_TESTS") else pytest.skip)(reason)
    return done


def test_preflight_looks_at_the_disk_that_the_run_is_on(make_run: MakeRun) -> None:
    run_dir = make_run("dpo")
    done = on_a_disk_of("3m", run_dir, "--preflight")
    report = json.loads((Path(f"{run_dir.path}.after") / "preflight.json").read_text())
    assert not report["ok"], done.stderr
    assert report["errors"][0]["what"].startswith("The disk is too small: this run writes 5.")
    assert report["estimate"]["disk_available_bytes"] < 3_200_000
    assert report["estimate"]["disk_bytes"] > 4_000_000


def test_a_disk_that_fills_up_ends_the_run_and_its_last_checkpoint_stays_whole(make_run: MakeRun) -> None:
    run_dir = make_run("dpo", training={"save_every": 2, "epochs": 3.0})
    need = need_of(run_dir)
    done = on_a_disk_of(str(int(2.4 * need.checkpoint)), run_dir)
    assert done.returncode == EXIT_CRASHED, done.stderr
    left = RunDir(f"{run_dir.path}.after")
    error = json.loads(left.error.read_text())
    assert "The disk is full" in error["what"]
    kept = left.last_checkpoint()
    assert kept is not None
    assert kept.name in error["do"]

    again = run_child(left)  # with room now
    assert again.returncode == EXIT_COMPLETE, again.stdout
    said = [line["message"] for line in left.progress_after(0)]
    assert f"Training from step {kept.name.rpartition('-')[2]}" in said
