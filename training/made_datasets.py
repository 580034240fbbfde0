"""What a run wrote by a constitution, brought home as a frozen dataset of the source `ai`.

Revisions become `demonstrations`, judged pairs become `pairs`, and the prompts go along. Only what the child
found worth learning from is taken: a revision that was cut, a pair without a verdict, are counted and left
out. Rows are another process's, so each is checked.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any

from labeling import datasets, prompts
from labeling.datasets import Drafted
from labeling.datasets.files import SPLITS
from labeling.datasets.manifest import Made
from labeling.datasets.rows import DemonstrationRow, PairRow, PromptRow, Row
from labeling.models.prompts import Message
from training.constitutional import judge_name, words_of
from training.models import Run
from training.rlhf.run_dir import RunDir, read_jsonl

FILES = {Run.Method.CRITIQUE_REVISION: "revisions.jsonl", Run.Method.AI_PREFERENCES: "judged.jsonl"}
NAMES = {Run.Method.CRITIQUE_REVISION: "AI revisions", Run.Method.AI_PREFERENCES: "AI preferences"}
KEPT = ("revised", "unchanged", "preferred", "tie")  # outcomes that something can be learnt from


class MadeRowsRefused(Exception):
    """A file of rows that cannot be used; the message says which line and why."""


@dataclass
class Found:
    rows: list[tuple[str, str, Row]] = field(default_factory=list)  # table, split, row
    lineage: list[dict[str, Any]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def left_out(self) -> dict[str, int]:
        return {name: count for name, count in self.outcomes.items() if name not in KEPT}

    @property
    def kept(self) -> int:
        return sum(self.outcomes[name] for name in KEPT)


@dataclass(frozen=True)
class Prepared:
    """A dataset ready to be published, or none where nothing was worth it."""

    run: Run
    found: Found
    draft: Drafted | None

    def publish(self) -> dict[str, Any]:
        """What changes on the run's row; inside the caller's transaction."""
        if self.draft is None:
            return {"message": f"Complete. No dataset was made: {_in_words(self.found.left_out)}."}
        dataset = self.draft.publish(
            name=f"{NAMES[Run.Method(self.run.method)]}, run {self.run.pk}",
            constitution=self.run.constitution,
        )
        left_out = self.found.left_out
        note = f" Left out: {_in_words(left_out)}." if left_out else ""
        return {
            "made_dataset": dataset,
            "message": f"Complete. {self.found.kept} rows are frozen in {dataset}.{note}",
        }


def _in_words(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(left_out.items())) or "nothing was written"


@contextmanager
def prepared(run: Run, run_dir: RunDir) -> Iterator[Prepared | None]:
    """The files of a run's dataset, written before the transaction that takes it in; None for other runs.

    Raises MadeRowsRefused, or FreezeFailed when they cannot be written.
    """
    if run.makes != "dataset":
        yield None
        return
    found = _read(run, run_dir)
    if not _teaches(found):
        yield Prepared(run, found, None)
        return
    with datasets.drafted(
        project=run.project, rows=found.rows, lineage=found.lineage, made=_made(run), left_out=found.left_out
    ) as draft:
        yield Prepared(run, found, draft)


def _teaches(found: Found) -> bool:
    """Pairs that are ties throughout prefer nothing."""
    return any(found.outcomes[name] for name in KEPT if name != "tie")


def _made(run: Run) -> Made:
    assert run.policy is not None and run.constitution is not None  # such a run has both
    return Made(
        method=run.method,
        run=run.pk,
        policy=str(run.policy),
        judge=judge_name(run),
        seed=int(run.config["seed"]),
        sampling=dict(run.config["sampling"]),
        constitution=words_of(run.constitution),
    )


def _read(run: Run, run_dir: RunDir) -> Found:
    name = FILES[Run.Method(run.method)]
    found = Found()
    path = run_dir.path / name
    try:
        for line in read_jsonl(path):
            _take(run.method, line, found)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        number = found.outcomes.total() + 1
        raise MadeRowsRefused(f"{name}, line {number} or so, cannot be used: {error!r}.") from error
    if not found.lineage:
        raise MadeRowsRefused(f"{name} holds no row.")
    return found


def _take(method: str, line: dict[str, Any], found: Found) -> None:
    split, outcome = line["split"], str(line["outcome"])
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}")
    prompt = prompts.canonical(line["prompt"])
    found.outcomes[outcome] += 1
    found.lineage.append({**line, "prompt": prompt})
    found.rows.append(("prompts", split, PromptRow(prompt=prompt)))
    if outcome not in KEPT:
        return
    if method == Run.Method.CRITIQUE_REVISION:
        last = _turn(line["turns"][-1]["revision"])
        found.rows.append(("demonstrations", split, DemonstrationRow(prompt=prompt, completion=last)))
    else:
        found.rows.append(("pairs", split, _pair(line, prompt)))


def _pair(line: dict[str, Any], prompt: list[Message]) -> PairRow:
    """An AI names no strength: a preference is a slight one, a tie's sides stand as a coin falls."""
    p = float(line["p"])
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}")
    one, other = (_turn(text) for text in line["completions"])
    coin = sha256(str(line["row"]).encode()).digest()[0] % 2 == 0
    first_is_chosen = coin if p == 0.5 else p > 0.5
    return PairRow(
        prompt=prompt,
        chosen=one if first_is_chosen else other,
        rejected=other if first_is_chosen else one,
        margin=0.0,
        weight=1.0,
        p=max(p, 1 - p),
        strength=0 if p == 0.5 else 1,
    )


def _turn(text: dict[str, Any]) -> list[Message]:
    """As the assistant's turn, without what no database takes."""
    content = str(text["text"]).replace("\0", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")
    return [Message(role="assistant", content=content)]


def first_lines(run: Run, count: int) -> list[dict[str, Any]]:
    """The first rows that a run wrote, also while it works; empty where the folder holds none.

    Shown on its page, so whatever cannot be read is left out.
    """
    name = FILES.get(Run.Method(run.method), "")
    for path in (run.folder / name, run.folder / f".{name}"):
        try:
            lines = [line for line in islice(read_jsonl(path), count) if isinstance(line, dict)]
        except (OSError, ValueError):
            continue
        if lines:
            return lines
    return []
