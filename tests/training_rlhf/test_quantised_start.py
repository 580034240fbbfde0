"""QLoRA alone imports bitsandbytes: in a process of its own, and in one that stood by without it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import ROOT, MakeRun, environment  # noqa: E402
from training.rlhf.run_dir import EXIT_COMPLETE, RunDir, read_jsonl  # noqa: E402

SHORT = {"max_steps": 3, "learning_rate": 1e-2}


def modules_after(code: str, run_dir: RunDir) -> set[str]:
    """Runs `main` in a process of its own; which of the heavy modules it had imported by the end."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint([n for n, m in sys.modules.items() if m is not None])",
         str(run_dir.path)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return set(json.loads(told.stdout.splitlines()[-1].replace("'", '"')))


@pytest.mark.parametrize(("kind", "is_imported"), [("lora", False), ("qlora", True)])
def test_only_a_run_that_quantises_imports_bitsandbytes(
    kind: str, is_imported: bool, make_run: MakeRun
) -> None:
    code = "import sys; from training.rlhf.__main__ import main; assert main([sys.argv[1]]) == 0"
    imported = modules_after(code, make_run("reward_model", pairs=8, tuning={"kind": kind}, training=SHORT))
    assert "peft" in imported
    assert ("bitsandbytes" in imported) == is_imported


def test_a_process_that_stood_by_begins_afresh_for_qlora(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run("reward_model", pairs=8, tuning={"kind": "qlora"}, training=SHORT)
    out, err = tmp_path / "out", tmp_path / "err"
    job = {"folder": str(run_dir.path), "stdout": str(out), "stderr": str(err)}
    child = subprocess.Popen(
        [sys.executable, "-m", "training.rlhf", "--standby"],
        cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(job | {"preflight": True}) + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == f"{EXIT_COMPLETE}\n", err.read_text()
    child.stdin.write(json.dumps(job | {"preflight": False}) + "\n")
    child.stdin.flush()
    assert child.wait(timeout=240) == EXIT_COMPLETE, err.read_text()
    assert run_dir.is_complete
    assert int((run_dir.lock).read_text()) == child.pid  # the same process to whoever started it
    losses = [line["values"]["loss"] for line in read_jsonl(run_dir.progress) if "loss" in line["values"]]
    assert len(losses) == 3
