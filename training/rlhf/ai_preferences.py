"""AI preferences: two completions for each prompt, judged by a constitution (2212.08073, section 4.1).

Each pair is asked about by one principle or several, each in both orders (`reward_kinds.judge`). An answer
that is no answer, and a choice that follows the place, are counted apart and never a preference. What is left
is a vote for each principle; their mean is `p`, and without a vote there is no pair. All that was written
and said is in `judged.jsonl` of the run folder.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

from training.rlhf.config import RunConfig
from training.rlhf.constitutional import constitution, drafts, made_data
from training.rlhf.constitutional.constitution import Constitution
from training.rlhf.constitutional.made_data import Asked, Text, Writer
from training.rlhf.progress import report
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds import judge, judge_voices
from training.rlhf.reward_kinds.judge import Verdict, Voice
from training.rlhf.reward_options import is_address
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl, write_json

FILE = "judged.jsonl"
VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "inconsistent", "nonsense")
OUTCOMES = ("preferred", "tie", "undecided", "same text")  # of a pair; the first two are learnt from
_VOTES: dict[str, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}
SAME = "same text"


class Said(TypedDict):
    """What the judge said by one principle: about (one, other), then about (other, one)."""

    principle: int  # its number in the constitution
    there: str
    back: str
    verdict: str


class JudgedRow(TypedDict):
    """A line of judged.jsonl. `p`: how far the first completion is preferred; null without a vote."""

    row: int
    split: str
    line: int  # of prompts.SPLIT.jsonl
    prompt: list[dict[str, str]]
    completions: list[Text]  # two
    said: list[Said]
    p: float | None
    outcome: str


def make(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Write what judged.jsonl lacks, and evaluation.json. Returns what result.json says about it."""
    words = constitution.read(run_dir.data)
    prompts = made_data.read(run_dir, config, most=config.ai_preferences.prompts)
    progress.total_steps = len(prompts.asked)
    path = run_dir.path / FILE
    if not path.exists():
        progress.write("Loading the policy and the judge")
        writer = Writer(config.model, config)
        voice = voice_of(config, writer)

        def judge_chunk(start: int, number: int) -> Sequence[JudgedRow]:
            chunk = prompts.asked[start : start + made_data.AT_ONCE]
            return judged(writer, voice, words, chunk, config, number=number)

        for done, rows in drafts.fill(
            path, rows=len(prompts.asked), at_once=made_data.AT_ONCE, make=judge_chunk
        ):
            progress.step = done
            report(progress, figures(rows), message=f"Judged {done} of {len(prompts.asked)} pairs")
    rows = list(read_jsonl(path))
    found = {
        "constitution": words.version,
        "rows": len(rows),
        "outcomes": made_data.counted(OUTCOMES, [row["outcome"] for row in rows]),
        "verdicts": verdict_counts(rows),
        "principles": _by_principle(words, rows),
        "figures": figures(rows),
    }
    write_json(run_dir.evaluation, {"made": found})
    return {"rows": prompts.rows, "evaluation": {"made": found}}


def voice_of(config: RunConfig, writer: Writer) -> Voice:
    """Who judges: a server, another policy, or the one that writes, which is loaded once."""
    own = config.ai_preferences
    if is_address(own.judge):
        return judge_voices.ServerVoice(own.judge, own.voice(), where=f"the judge {own.judge}")
    if own.judge in ("", config.model):
        return writer
    return judge_voices.PolicyVoice(own.judge, own.voice(), seed=config.seed)


def judged(
    writer: Writer,
    voice: Voice,
    words: Constitution,
    asked: Sequence[Asked],
    config: RunConfig,
    *,
    number: int,
) -> list[JudgedRow]:
    """One row for each prompt. `number` of the chunk fixes every draw; equal texts are not asked about."""
    drawn = writer.write([one.prompt for one in asked for _ in range(2)], batch=number)
    pairs = [(drawn[2 * place], drawn[2 * place + 1]) for place in range(len(asked))]
    questions = [
        (place, principle)
        for place, one in enumerate(asked)
        if pairs[place][0]["text"] != pairs[place][1]["text"]
        for principle in words.several(config.ai_preferences.principles, seed=config.seed, row=one.number)
    ]
    there = [_question(asked[place], pairs[place], rule.comparison) for place, rule in questions]
    back = [_question(asked[place], pairs[place][::-1], rule.comparison) for place, rule in questions]
    answers = voice.answers([*there, *back]) if questions else []
    heard: list[list[Said]] = [[] for _ in asked]
    halves = zip(questions, answers[: len(questions)], answers[len(questions) :], strict=True)
    for (place, principle), one, other in halves:
        verdict = judge.verdict(one, other)
        heard[place].append(Said(principle=principle.number, there=one, back=other, verdict=verdict))
    return [
        JudgedRow(
            row=one.number,
            split=one.split,
            line=one.row.line,
            prompt=one.prompt,
            completions=list(pairs[place]),
            said=heard[place],
            p=preference([said["verdict"] for said in heard[place]]),
            outcome=outcome([said["verdict"] for said in heard[place]]),
        )
        for place, one in enumerate(asked)
    ]


def _question(one: Asked, pair: Sequence[Text], rubric: str) -> Messages:
    return judge.pair_question(rubric, one.prompt, pair[0]["text"], pair[1]["text"])


def preference(verdicts: Sequence[str]) -> float | None:
    """How far the first is preferred: the mean of what was decided; None when nothing was.

    >>> preference(["first", "second", "first", "nonsense"]), preference(["tie"])
    (0.6666666666666666, 0.5)
    >>> preference(["nonsense", "inconsistent"]), preference([])
    (None, None)
    """
    votes = [_VOTES[one] for one in verdicts if one in _VOTES]
    return sum(votes) / len(votes) if votes else None


def outcome(verdicts: Sequence[str]) -> str:
    """What became of a pair, by what was said of it.

    >>> outcome(["first"]), outcome(["first", "second"]), outcome(["nonsense"]), outcome([])
    ('preferred', 'tie', 'undecided', 'same text')
    """
    p = preference(verdicts)
    if not verdicts:
        return SAME
    return "undecided" if p is None else "tie" if p == 0.5 else "preferred"


def verdict_counts(rows: Sequence[JudgedRow]) -> dict[str, int]:
    return made_data.counted(VERDICTS, [said["verdict"] for row in rows for said in row["said"]])


def figures(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """Shares of the verdicts and of the pairs, and how the completions are."""
    counts = verdict_counts(rows)
    asked = sum(counts.values())
    texts = [text for row in rows for text in row["completions"]]
    found = made_data.length_figures(texts) | {
        "pairs/preferred": sum(row["outcome"] == "preferred" for row in rows) / len(rows)
    }
    if not asked:
        return found
    return found | {
        "verdicts/decided": (counts["first"] + counts["second"]) / asked,
        **{f"verdicts/{name}": counts[name] / asked for name in ("tie", "inconsistent", "nonsense")},
    }


def _by_principle(words: Constitution, rows: Sequence[JudgedRow]) -> dict[str, dict[str, int]]:
    by: dict[int, list[str]] = {one.number: [] for one in words.principles}
    for row in rows:
        for said in row["said"]:
            by[said["principle"]].append(said["verdict"])
    return {str(number): made_data.counted(VERDICTS, found) for number, found in by.items()}
