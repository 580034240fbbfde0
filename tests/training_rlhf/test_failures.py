"""Whatever ends a run is said in words: what, where, what to do. Needs no torch."""

import errno
from pathlib import Path

import pytest

from training.rlhf.checkpoints import CheckpointNotSaved, is_disk_full, remove_incomplete
from training.rlhf.failures import Refused, explain
from training.rlhf.run_dir import EXIT_CRASHED, EXIT_REFUSED, RunDir, write_json


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception('I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'),
        Exception("I/O error: File too large (os error 27)"),
        raised(RuntimeError("while saving"), OSError(errno.EFBIG, "")),
    ],
    ids=["errno", "quota", "torch", "safetensors", "limit", "cause"],
)
def test_a_full_disk_is_recognised_whoever_writes(error: Exception, tmp_path: Path) -> None:
    assert is_disk_full(error)
    explained, code = explain(error, run_dir=RunDir(tmp_path))
    assert "disk is full" in explained["what"]
    assert "Free space" in explained["do"]
    assert code == EXIT_CRASHED


def test_other_errors_are_no_full_disk() -> None:
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(ValueError("too large"))


def test_a_checkpoint_that_failed_says_which_one_remains(tmp_path: Path) -> None:
    kept = tmp_path / "checkpoint-20"
    lost = CheckpointNotSaved(step=30, kept=kept, disk_full=True, folder=tmp_path / "checkpoint-30")
    explained, code = explain(lost, run_dir=RunDir(tmp_path))
    assert explained["what"] == (
        "The disk is full: the checkpoint of step 30 could not be saved and was removed."
    )
    assert explained["do"] == "Free space and resume the run. It goes on from checkpoint-20."
    assert code == EXIT_CRASHED

    lost = CheckpointNotSaved(step=3, kept=None, disk_full=False, folder=tmp_path / "checkpoint-3")
    explained, _ = explain(raised(lost, PermissionError("not yours")), run_dir=RunDir(tmp_path))
    assert "not yours" in explained["what"]
    assert "begins anew" in explained["do"]


def test_input_at_fault_is_refused_in_its_own_words(tmp_path: Path) -> None:
    explained, code = explain(Refused("Too short.", "line 3", "Write more."), run_dir=RunDir(tmp_path))
    assert explained == {"what": "Too short.", "where": "line 3", "do": "Write more."}
    assert code == EXIT_REFUSED


def test_memory_and_missing_packages_have_advice(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    memory, _ = explain(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), run_dir=run_dir)
    assert "batch_size" in memory["do"]
    assert "\n" not in memory["what"]
    package, _ = explain(ModuleNotFoundError("No module named 'torch'", name="torch"), run_dir=run_dir)
    assert "torch" in package["what"]
    assert "training" in package["do"]


def test_what_nobody_foresaw_names_our_line_and_the_checkpoint_that_remains(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    (run_dir.checkpoints / "checkpoint-5").mkdir(parents=True)
    write_json(run_dir.checkpoints / "checkpoint-5" / "complete.json", {"step": 5})
    try:
        write_json(run_dir.result, {1, 2})
    except TypeError as error:
        explained, code = explain(error, run_dir=run_dir)
    assert explained["what"].startswith("TypeError: ")
    assert explained["where"].startswith("run_dir.py, line ")
    assert "checkpoint-5" in explained["do"]
    assert code == EXIT_CRASHED


def test_what_was_left_half_written_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for name in ("checkpoint-5", "checkpoint-10"):
        (run_dir.checkpoints / name).mkdir(parents=True)
    write_json(run_dir.checkpoints / "checkpoint-5" / "complete.json", {"step": 5})
    assert remove_incomplete(run_dir) == ["checkpoint-10"]
    assert [path.name for path in run_dir.checkpoints.iterdir()] == ["checkpoint-5"]
