"""The run folder: the whole of what a stage needs and of what it leaves. Standard library only.

config.json          the recipe (training.rlhf.config.RunConfig)
data/                TABLE.train.jsonl and TABLE.test.jsonl of the tables that the method learns from
                     (training.rlhf.methods), prompts.test.jsonl (evaluation), requests.jsonl (sampling),
                     constitution.json (methods that make a dataset)
data/mixture/NAME/   the same of each further dataset (training.rlhf.mixture)
preflight.json       written by `python -m training.rlhf RUN_DIR --preflight`
progress.jsonl       appended: one ProgressLine a line, `seq` counts from 1 without gaps
rehearsal.json       how the step on the longest batch went, which is tried before training begins
checkpoints/         checkpoint-STEP/, usable once it holds `complete.json`
model/               what was trained: safetensors, tokenizer, `lineage.json`
completions.jsonl    one SampledCompletion a line
served.jsonl         answers of servers as they come in, of a sampling run that is under way
revisions.jsonl      one training.rlhf.critique_revision.RevisedRow a line
judged.jsonl         one training.rlhf.ai_preferences.JudgedRow a line
evaluation.json
scores.jsonl         of a reward model: what it says of each held-out row (measures.held_out_scores)
error.json           RunError: what happened, where, what to do
result.json          written last and by rename: its presence means complete
lock                 held (flock) by the one process that works here
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

# Exit codes of `python -m training.rlhf`
EXIT_COMPLETE = 0
EXIT_CRASHED = 1
EXIT_CANCELLED = 3  # told to stop, checkpoint saved: can be resumed
EXIT_REFUSED = 4  # the input is at fault: error.json says what to do
EXIT_LOCKED = 5  # another process works in this folder
EXIT_NOT_BEGUN = 6  # a step on the longest batch was tried and cannot be taken: error.json says what to do


class ProgressLine(TypedDict):
    seq: int
    time: float  # seconds since the epoch
    step: int
    total_steps: int
    message: str  # what it does now, for people; may be empty
    values: dict[str, float]  # TRL's metric names; may be empty


class SampledCompletion(TypedDict):
    """A line of completions.jsonl. `request` is the line's number in requests.jsonl or prompts.test.jsonl."""

    request: int
    policy: str  # the name in the config; in a DPO run "new" and "old"
    text: str
    finish: str  # "eos" or "length"; by a server also its own word, such as "content_filter"
    tokens: int  # by a server that does not count them 0
    served: NotRequired[dict[str, Any]]  # by a server: which, and what it says that it is
    scores: NotRequired[dict[str, float]]  # by name: what evaluators say, how far an ensemble disagrees


class SampleRequest(TypedDict):
    """A line of requests.jsonl: `policies` names the writer of each completion wanted, one or more."""

    prompt: list[dict[str, str]]
    policies: list[str]


class RunError(TypedDict):
    what: str
    where: str
    do: str


class Preflight(TypedDict):
    """preflight.json. What could not be found out is left empty; sizes and times are guesses."""

    ok: bool  # False when there is an error
    errors: list[RunError]
    warnings: list[str]
    rows: dict[str, dict[str, dict[str, int]]]  # table -> split -> kept, dropped, longest (tokens), ties
    template: dict[str, Any]  # hash, sample (special tokens visible), bos (how many), eos_is_last
    estimate: dict[str, Any]  # device, parameters, steps, seconds, memory_bytes, memory_available_bytes ...


class Job(TypedDict):
    """A line for a process that stands by (training.rlhf.standby)."""

    folder: str
    preflight: bool
    stdout: str  # files that take what the job prints
    stderr: str


class LeaveJob(TypedDict):
    """job.json of training.rlhf.leave, which writes model/, state.json, result.json or error.json."""

    model: str  # the folder of the model as it is stored
    adapter: str  # that of its adapter; may be empty
    form: str  # stored, bf16, fp32 or adapter
    base: str  # what others load the adapter onto
    texts: dict[str, str]  # files to write beside the weights: README.md, lineage.json
    leave_out: list[str]  # files that are for nobody else
    repo: str  # on the hub; empty: only write
    private: bool
    message: str  # of the commit


class LeaveState(TypedDict):
    """state.json while it works."""

    percent: int
    message: str


class RunLocked(Exception):
    """Another process works in this run folder; `pid` is its process id (0 when unknown)."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} works in this run folder")
        self.pid = pid


class RunDir:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.data = self.path / "data"
        self.preflight = self.path / "preflight.json"
        self.progress = self.path / "progress.jsonl"
        self.rehearsal = self.path / "rehearsal.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.completions = self.path / "completions.jsonl"
        self.evaluation = self.path / "evaluation.json"
        self.error = self.path / "error.json"
        self.result = self.path / "result.json"
        self.lock = self.path / "lock"

    def mixed_data(self, name: str) -> Path:
        """The tables of a further dataset of the mixture."""
        return self.path / "data" / "mixture" / name

    @property
    def is_complete(self) -> bool:
        return self.result.exists()

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if (p / "complete.json").exists()]
        return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises RunLocked at once when another one holds it."""
        with open(self.lock, "a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                raise RunLocked(int(holder) if holder.isdigit() else 0) from None
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield

    def progress_after(self, seq: int) -> Iterator[ProgressLine]:
        """Lines numbered above `seq`; a last line that is still being written is left for next time."""
        if not self.progress.exists():
            return
        with open(self.progress, encoding="utf-8") as file:
            for text in file:
                if not text.endswith("\n"):
                    return
                line: ProgressLine = json.loads(text)
                if line["seq"] > seq:
                    yield line


class ProgressWriter:
    """Appends to progress.jsonl. Goes on counting where an earlier attempt stopped."""

    def __init__(self, run_dir: RunDir) -> None:
        self._path = run_dir.progress
        self._cut_torn_line()
        self._seq = max((line["seq"] for line in run_dir.progress_after(0)), default=0)
        self.step = 0
        self.total_steps = 0

    def _cut_torn_line(self) -> None:
        if self._path.exists():
            content = self._path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                with open(self._path, "r+b") as file:
                    file.truncate(whole)

    def write(self, message: str = "", values: dict[str, float] | None = None) -> None:
        self._seq += 1
        line = ProgressLine(
            seq=self._seq,
            time=time.time(),
            step=self.step,
            total_steps=self.total_steps,
            message=message,
            values=values or {},
        )
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write by rename: a reader sees the old file or the new one, whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_jsonl(path: Path) -> Iterator[Any]:
    if path.exists():
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
