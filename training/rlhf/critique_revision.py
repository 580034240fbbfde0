"""The policy criticises and revises its own answers by a constitution (Bai et al., 2212.08073, section 3.1).

For each prompt it answers, is asked to criticise the answer by a principle drawn from the constitution, and
to write it again; in the next round the revision takes the answer's place, and another principle is drawn.
All that was written is in `revisions.jsonl` of the run folder. The last revision is what SFT learns from; one
that was cut or is empty teaches nothing good, and is left out and counted.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

from training.rlhf.config import RunConfig
from training.rlhf.constitutional import constitution, drafts, made_data
from training.rlhf.constitutional.constitution import Constitution
from training.rlhf.constitutional.made_data import Asked, Text, Writer, said
from training.rlhf.progress import report
from training.rlhf.rendering import Messages
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl, write_json

FILE = "revisions.jsonl"
OUTCOMES = ("revised", "unchanged", "cut", "empty")  # of a row; the first two are learnt from


class Turn(TypedDict):
    principle: int  # its number in the constitution
    critique: Text
    revision: Text


class RevisedRow(TypedDict):
    """A line of revisions.jsonl."""

    row: int
    split: str
    line: int  # of prompts.SPLIT.jsonl
    prompt: list[dict[str, str]]
    answer: Text
    turns: list[Turn]
    outcome: str


def make(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Write what revisions.jsonl lacks, and evaluation.json. Returns what result.json says about it."""
    words = constitution.read(run_dir.data)
    prompts = made_data.read(run_dir, config, most=config.critique_revision.prompts)
    progress.total_steps = len(prompts.asked)
    path = run_dir.path / FILE
    if not path.exists():
        progress.write("Loading the policy")
        writer = Writer(config.model, config)

        def revise(start: int, number: int) -> Sequence[RevisedRow]:
            chunk = prompts.asked[start : start + made_data.AT_ONCE]
            return revised(writer, words, chunk, config, number=number)

        for done, rows in drafts.fill(path, rows=len(prompts.asked), at_once=made_data.AT_ONCE, make=revise):
            progress.step = done
            report(progress, figures(rows), message=f"Revised {done} of {len(prompts.asked)} answers")
    rows = list(read_jsonl(path))
    found = {
        "constitution": words.version,
        "rows": len(rows),
        "outcomes": made_data.counted(OUTCOMES, [row["outcome"] for row in rows]),
        "principles": _by_principle(words, rows),
        "figures": figures(rows),
    }
    write_json(run_dir.evaluation, {"made": found})
    return {"rows": prompts.rows, "evaluation": {"made": found}}


def revised(
    writer: Writer, words: Constitution, asked: Sequence[Asked], config: RunConfig, *, number: int
) -> list[RevisedRow]:
    """One row for each prompt. `number` of the chunk fixes every draw."""
    rounds = config.critique_revision.rounds
    first = number * (1 + 2 * rounds)  # of the batches of this chunk: an answer, then two a round
    answers = writer.write([one.prompt for one in asked], batch=first)
    before, turns = answers, [list[Turn]() for _ in asked]
    for round in range(rounds):
        principles = [words.sampled(seed=config.seed, row=one.number, turn=round) for one in asked]
        talks: list[list[dict[str, str]]] = [
            [*one.prompt, said(text["text"]), {"role": "user", "content": principle.critique}]
            for one, text, principle in zip(asked, before, principles, strict=True)
        ]
        critiques = writer.write(_messages(talks), batch=first + 1 + 2 * round)
        for talk, critique, principle in zip(talks, critiques, principles, strict=True):
            talk += [said(critique["text"]), {"role": "user", "content": principle.revision}]
        before = writer.write(_messages(talks), batch=first + 2 + 2 * round)
        for place, principle in enumerate(principles):
            turn = Turn(principle=principle.number, critique=critiques[place], revision=before[place])
            turns[place].append(turn)
    return [
        RevisedRow(
            row=one.number,
            split=one.split,
            line=one.row.line,
            prompt=one.prompt,
            answer=answers[place],
            turns=turns[place],
            outcome=outcome(answers[place], before[place]),
        )
        for place, one in enumerate(asked)
    ]


def outcome(answer: Text, revision: Text) -> str:
    """What became of an answer.

    >>> done, cut = {"finish": "eos", "tokens": 2}, {"finish": "length", "tokens": 9}
    >>> outcome({"text": "No.", **done}, {"text": "No, sorry.", **done})
    'revised'
    >>> outcome({"text": "No.", **done}, {"text": "No.", **done}), outcome({"text": "No.", **done},
    ...     {"text": "No, and", **cut}), outcome({"text": "No.", **done}, {"text": " ", **done})
    ('unchanged', 'cut', 'empty')
    """
    if revision["finish"] == "length":
        return "cut"
    if not revision["text"].strip():
        return "empty"
    return "unchanged" if revision["text"].strip() == answer["text"].strip() else "revised"


def figures(rows: Sequence[RevisedRow]) -> dict[str, float]:
    """Of what was written: shares that changed and that ended, mean lengths in tokens."""
    answers = [row["answer"] for row in rows]
    critiques = [turn["critique"] for row in rows for turn in row["turns"]]
    revisions = [row["turns"][-1]["revision"] for row in rows]

    def length(texts: Sequence[Text]) -> float:
        return sum(one["tokens"] for one in texts) / len(texts)

    return {
        "revisions/changed": sum(row["outcome"] == "revised" for row in rows) / len(rows),
        "eos_rate": sum(one["finish"] == "eos" for one in revisions) / len(rows),
        "answers/mean_length": length(answers),
        "critiques/mean_length": length(critiques),
        "revisions/mean_length": length(revisions),
    }


def _by_principle(words: Constitution, rows: Sequence[RevisedRow]) -> dict[str, int]:
    used = [turn["principle"] for row in rows for turn in row["turns"]]
    return {str(one.number): used.count(one.number) for one in words.principles}


def _messages(talks: Sequence[list[dict[str, str]]]) -> list[Messages]:
    return [list(talk) for talk in talks]
