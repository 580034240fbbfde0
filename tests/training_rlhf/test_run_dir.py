"""The run folder: one holder, lines without gaps, files that appear whole. Standard library only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.rlhf.run_dir import ProgressWriter, RunDir, RunLocked, read_jsonl, write_json

HOLDS = """
import sys
from training.rlhf.run_dir import RunDir
with RunDir(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_and_freed_when_it_is_killed(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked) as locked, run_dir.locked():
            pass
        assert locked.value.pid == holder.pid
    finally:
        holder.kill()
        holder.communicate()
    with run_dir.locked():
        pass


def test_progress_goes_on_counting_and_cuts_a_torn_line(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    writer = ProgressWriter(run_dir)
    writer.step = 3
    writer.write("Training", {"loss": 0.5})
    writer.write()
    with open(run_dir.progress, "a") as file:
        file.write('{"seq": 3, "ti')
    assert [line["seq"] for line in run_dir.progress_after(0)] == [1, 2]
    ProgressWriter(run_dir).write("Again")
    assert [line["seq"] for line in run_dir.progress_after(1)] == [2, 3]
    assert json.loads(run_dir.progress.read_text().splitlines()[-1])["message"] == "Again"


def test_the_last_checkpoint_is_the_newest_that_was_written_to_its_end(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.last_checkpoint() is None
    for step, is_whole in ((9, True), (10, True), (100, False)):
        folder = run_dir.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if is_whole:
            write_json(folder / "complete.json", {"step": step})
    assert run_dir.last_checkpoint() == run_dir.checkpoints / "checkpoint-10"


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": "ü"})
    for unwritable in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, unwritable)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü"}
    assert list(tmp_path.iterdir()) == [path]


def test_rows_are_read_past_empty_lines_and_a_missing_file_has_none(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row["a"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [1, 2]
    assert list(read_jsonl(tmp_path / "none.jsonl")) == []
