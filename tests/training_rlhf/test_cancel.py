"""The child process and the world around it: a second one, signals, its parent's death, bad recipes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import (  # noqa: E402
    ROOT,
    MakeRun,
    environment,
    run_child,
    start_child,
)
from training.rlhf.__main__ import see_one_device, settled  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.run_dir import (  # noqa: E402
    EXIT_CANCELLED,
    EXIT_LOCKED,
    EXIT_REFUSED,
    RunDir,
    write_json,
)

STARTS_AND_WAITS = """
import os, subprocess, sys, time
env = os.environ | {"RATCHET_PARENT_PID": str(os.getpid())}
child = subprocess.Popen([sys.executable, "-m", "training.rlhf", sys.argv[1]], env=env)
print(child.pid, flush=True)
time.sleep(300)
"""


def wait_until_held(run_dir: RunDir) -> None:
    deadline = time.monotonic() + 30
    while not (run_dir.lock.exists() and run_dir.lock.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:  # a zombie that nobody waits for works no more
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_only_one_process_works_in_a_folder_and_it_dies_with_its_parent(make_run: MakeRun) -> None:
    run_dir = make_run("dpo", training={"epochs": 1000})
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS, str(run_dir.path)],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until_held(run_dir)
        started = time.monotonic()
        second = run_child(run_dir)
        assert second.returncode == EXIT_LOCKED
        assert f"process {pid} works" in second.stdout
        assert time.monotonic() - started < 5  # it imports nothing heavy before it knows
        assert not is_gone(pid)
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 5
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(pid)


def test_a_child_whose_parent_is_dead_already_leaves_at_once(make_run: MakeRun) -> None:
    run_dir = make_run("dpo")
    child = run_child(run_dir, env={"RATCHET_PARENT_PID": "1"})
    assert child.returncode == EXIT_CANCELLED
    assert not run_dir.lock.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_it_loads_ends_it_at_once(number: signal.Signals, make_run: MakeRun) -> None:
    run_dir = make_run("reward_model")
    child = start_child(run_dir)
    wait_until_held(run_dir)
    time.sleep(0.3)  # importing by now
    child.send_signal(number)
    output, _ = child.communicate(timeout=5)
    assert child.returncode == EXIT_CANCELLED, output
    assert not run_dir.result.exists()


@pytest.mark.parametrize(
    ("visible", "seen"),
    [(None, "0"), ("2,3", "2"), ("GPU-1f,GPU-2e", "GPU-1f"), ("1", "1"), ("", "")],
    ids=["unset", "two", "by-name", "one", "none"],
)
def test_a_run_sees_one_device(visible: str | None, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    see_one_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_bf16_is_the_devices_choice_where_nobody_chose(
    asked: bool | None, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: able)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: able)
    training = {} if asked is None else {"bf16": asked}
    config = RunConfig.from_json({"method": "dpo", "model": "here", "training": training})
    assert settled(config).training.bf16 is (able if asked is None else asked)


def test_a_recipe_that_cannot_be_run_is_refused_with_words(make_run: MakeRun) -> None:
    run_dir = make_run("dpo")
    config = json.loads(run_dir.config.read_text())
    for broken, words in (
        (config | {"training": {"epoch": 1}}, "training.epoch: no such setting"),
        (config | {"seed": -1}, "seed is -1"),
        ([], "expected an object"),
    ):
        write_json(run_dir.config, broken)
        assert run_child(run_dir).returncode == EXIT_REFUSED
        error = json.loads(run_dir.error.read_text())
        assert words in error["what"]
        assert error["where"] == str(run_dir.config)
        assert error["do"]
    run_dir.config.write_text("{")
    assert run_child(run_dir).returncode == EXIT_REFUSED
    assert "not JSON" in json.loads(run_dir.error.read_text())["what"]
    run_dir.config.unlink()
    assert run_child(run_dir).returncode == EXIT_REFUSED
    assert "no recipe" in json.loads(run_dir.error.read_text())["what"]


def test_a_folder_that_is_no_model_is_refused_and_nothing_is_left(make_run: MakeRun) -> None:
    run_dir = make_run("dpo", model="/")
    child = run_child(run_dir)
    assert child.returncode == EXIT_REFUSED, child.stdout
    error = json.loads(run_dir.error.read_text())
    assert error["where"] == "/"
    assert "config.json" in error["what"]
    assert not run_dir.model.exists()
    assert not run_dir.result.exists()
