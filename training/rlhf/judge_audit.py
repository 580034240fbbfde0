"""How far a judge is one of the raters: it is asked what they were asked, before anybody relies on it.

Each held-out comparison is put to it in both orders. What it says is set beside what people said: agreement,
Cohen's kappa (what agreement is more than chance), how often it chose a place and not a text (2306.05685,
section 3.3), and how often it gave no answer. Nothing is trained; the figures are evaluation.json.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from training.rlhf import rewards
from training.rlhf.config import RunConfig
from training.rlhf.data import Element, Split, read_for_reward_model
from training.rlhf.failures import Refused
from training.rlhf.measures import figures
from training.rlhf.progress import raise_if_stopped, report
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds import judge
from training.rlhf.reward_options import JudgeOptions, options_of
from training.rlhf.run_dir import Preflight, ProgressWriter, RunDir, read_jsonl, write_json

FILE = "verdicts.jsonl"  # one line for each comparison that was asked
_AT_ONCE = 16  # comparisons between two lines of progress


class Asked(NamedTuple):
    """A comparison of people: `p` is how likely they prefer the first, above 0.5."""

    prompt: Messages
    first: str
    second: str
    p: float
    strength: int | None


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Any]]:
    return {"pairs": list(read_for_reward_model(run_dir, split))}


def check(run_dir: RunDir, config: RunConfig) -> Preflight:
    """The content of preflight.json: are there comparisons, and does the judge answer?"""
    asked = comparisons(run_dir, config)
    errors, warnings = rewards.problems(config)
    kept = {"kept": len(asked), "dropped": 0, "longest": 0, "ties": 0}
    return Preflight(
        ok=not errors,
        errors=errors,
        warnings=warnings,
        rows={"pairs": {"test": kept}},
        template={},
        estimate={"steps": len(asked)},
    )


def comparisons(run_dir: RunDir, config: RunConfig) -> list[Asked]:
    """Those of the held-out split that are no ties, at most so many. Raises Refused without any."""
    found = [one for element in read_for_reward_model(run_dir, "test") for one in _decided(element)]
    if not found:
        raise Refused(
            "There are no held-out comparisons in which people preferred one.",
            str(run_dir.data),
            "Freeze a dataset of comparisons or rankings that holds some prompts out.",
        )
    return found[: config.judge_audit.comparisons]


def _decided(element: Element) -> list[Asked]:
    texts = ["\n".join(turn["content"] for turn in turns) for turns in element.completions]
    return [
        Asked(element.prompt, texts[one.chosen], texts[one.rejected], one.p, element.strength)
        if one.p > 0.5
        else Asked(element.prompt, texts[one.rejected], texts[one.chosen], 1 - one.p, element.strength)
        for one in element.comparisons
        if one.p != 0.5
    ]


def train(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Ask, and write evaluation.json. Returns what result.json says about it."""
    asked = comparisons(run_dir, config)
    (reward,) = config.rewards
    options = options_of(reward)
    assert isinstance(options, JudgeOptions)
    progress.total_steps = len(asked)
    progress.write(f"Asking the judge about {len(asked)} comparisons, in both orders")
    voice = judge.load(reward, seed=config.seed)
    started = time.monotonic()
    said = _said_before(run_dir, asked)
    for start in range(len(said.verdicts), len(asked), _AT_ONCE):
        raise_if_stopped()
        chunk = asked[start : start + _AT_ONCE]
        found = judge.preferences(
            voice,
            rubric=options.rubric,
            prompts=[one.prompt for one in chunk],
            ones=[one.first for one in chunk],
            others=[one.second for one in chunk],
        )
        _keep(run_dir, found)
        said = judge.Preferences(
            said.verdicts + found.verdicts, said.there + found.there, said.back + found.back
        )
        progress.step = len(said.verdicts)
        report(progress, live_figures(said.verdicts), message=f"{progress.step} of {len(asked)} asked")
    write_json(run_dir.evaluation, {"judge_audit": audit_figures(asked, said)})
    return {
        "rows": {"test": {"kept": len(asked), "dropped": 0}},
        "steps": len(asked),
        "train_seconds": round(time.monotonic() - started, 2),
    }


def _keep(run_dir: RunDir, said: judge.Preferences) -> None:
    """What was heard, so that a run that goes on asks nothing twice."""
    with open(run_dir.path / FILE, "a", encoding="utf-8") as file:
        for verdict, there, back in zip(said.verdicts, said.there, said.back, strict=True):
            file.write(json.dumps({"verdict": verdict, "there": there, "back": back}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _said_before(run_dir: RunDir, asked: Sequence[Asked]) -> judge.Preferences:
    path = run_dir.path / FILE
    if path.exists():  # a dying process may leave half of a line
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    rows = list(read_jsonl(path))[: len(asked)]
    return judge.Preferences(
        [row["verdict"] for row in rows], [row["there"] for row in rows], [row["back"] for row in rows]
    )


def live_figures(verdicts: Sequence[judge.Verdict]) -> dict[str, float]:
    counts = Counter(verdicts)
    decided = counts["first"] + counts["second"]
    found = {f"judge/{name}": counts[name] / len(verdicts) for name in ("nonsense", "inconsistent", "tie")}
    return found | ({"judge/agreement": counts["first"] / decided} if decided else {})


def audit_figures(asked: Sequence[Asked], said: judge.Preferences) -> dict[str, Any]:
    """Figures of evaluation.json. `said`: of the comparisons in order, people's choice being the first.

    `agreement`: of the comparisons with an answer, the share on their side; a tie or a choice that does not
    survive the exchange is half right, as a coin would be. `decided`: of those with a choice that survives.
    """
    prompts = [str(one.prompt) for one in asked]
    heard = [place for place, verdict in enumerate(said.verdicts) if verdict != "nonsense"]
    right = [{"first": 1.0, "second": 0.0}.get(said.verdicts[place], 0.5) for place in heard]
    decided = [place for place in heard if said.verdicts[place] in ("first", "second")]
    agrees = figures.clustered_rate(right, [prompts[place] for place in heard])
    sure = figures.clustered_rate(
        [float(said.verdicts[place] == "first") for place in decided], [prompts[place] for place in decided]
    )
    strengths = sorted({one.strength for one in asked if one.strength})
    return {
        "n": len(asked),
        "prompts": len(set(prompts)),
        "counts": said.counts,
        "agreement": _rate(agrees),
        "decided": _rate(sure),
        "kappa": kappa(said),
        "position": position(said),
        "nonsense": _rate(
            figures.clustered_rate([float(one == "nonsense") for one in said.verdicts], prompts)
        ),
        "inconsistent": _rate(
            figures.clustered_rate(
                [float(said.verdicts[place] == "inconsistent") for place in heard],
                [prompts[place] for place in heard],
            )
        ),
        "by_strength": {
            str(strength): _rate(
                figures.clustered_rate(
                    [
                        one
                        for one, place in zip(right, heard, strict=True)
                        if asked[place].strength == strength
                    ],
                    [prompts[place] for place in heard if asked[place].strength == strength],
                )
            )
            for strength in strengths
        },
    }


def _rate(found: figures.Rate) -> dict[str, float | None]:
    """Without a case there is no share."""
    none = found["n"] == 0
    return {
        "rate": None if none else found["rate"],
        "low": found["low"],
        "high": found["high"],
        "n": found["n"],
    }


def kappa(said: judge.Preferences) -> float | None:
    """Cohen's kappa (1960) of judge and people over single questions; None where chance explains all.

    Each comparison is two questions, with people's choice in the first and in the second place, so people
    choose either place equally often, and agreement by chance is one half of how often the judge chose one.
    Ties count against it; nonsense is left out.
    """
    first = [one for one in said.there if one is not None]
    second = [one for one in said.back if one is not None]
    n = len(first) + len(second)
    if not n:
        return None
    agreed = (first.count("first") + second.count("second")) / n
    people = len(first) / n  # how often people's choice stood in the first place
    judged = ((first + second).count("first") / n, (first + second).count("second") / n)
    chance = people * judged[0] + (1 - people) * judged[1]
    return (agreed - chance) / (1 - chance) if chance < 1 else None


def position(said: judge.Preferences) -> dict[str, float | None]:
    """The share of its choices that are for the first place: 0.5 without a bias. Ties and nonsense aside.

    Every text stands in both places, so a judge of texts comes to one half exactly.
    """
    pairs = zip(said.there, said.back, strict=True)
    whole = [
        (one, other) for one, other in pairs if one in ("first", "second") and other in ("first", "second")
    ]
    share = [((one == "first") + (other == "first")) / 2 for one, other in whole]
    return _rate(figures.clustered_rate(share, range(len(share))))
