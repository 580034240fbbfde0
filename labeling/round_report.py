"""What a manager sees of a round while people judge: agreement, answers, sides, pace. Reads only.

It looks at the newest labels, up to a fixed number, so that a page that refreshes itself stays cheap however
large the round grows; the counts come from the raters' own counters and are exact.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from statistics import median
from typing import Any, cast

from django.db.models import Count, Q

from labeling.agreement import PairAgreement, Share, krippendorff_alpha, pair_agreement
from labeling.comparisons import Judgement, Kind
from labeling.models import Assignment, Completion, Policy, Protocol, Round, Skip, TaskItem

LOOKED_AT = 2_000  # labels
TASKS_AT_ONCE = 500
HOW_MUCH = {4: "far", 3: "clearly", 2: "somewhat", 1: "slightly"}
STRENGTHS = {strength: f"{word} better" for strength, word in HOW_MUCH.items()}
PLAIN = "better"

# A completion that says who wrote it spoils blind judging. Words that ordinary text seldom has.
IDENTITY = (
    "as an ai",
    "i am an ai",
    "i'm an ai",
    "ai language model",
    "large language model",
    "chatgpt",
    "gpt-3",
    "gpt-4",
    "gpt-5",
    "openai",
    "anthropic",
    "i am claude",
    "i'm claude",
    "deepseek",
    "qwen",
    "openassistant",
    "open assistant",
)
EXCERPT = 60  # characters either side of the words found


@dataclass(frozen=True)
class Answer:
    """One answer and how often it was given; `side` is left, right, neither or bad."""

    name: str
    count: int
    side: str
    word: str = ""  # under its bar, where the name is too long


@dataclass(frozen=True)
class Question:
    """The answers to one question of the protocol, in their natural order."""

    name: str
    answers: list[Answer]


@dataclass(frozen=True, kw_only=True)
class RaterFigures:
    name: str
    labels: int  # of those looked at
    seconds: float
    left: Share  # of their preferences, those for what stood left


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    looked_at: int
    agreement: PairAgreement
    alpha: list[tuple[str, float]]  # by criterion, in rounds of ratings
    left: Share  # of all preferences, those for what stood left (in rankings: first)
    both_bad: Share
    seconds: float | None  # median on a task
    questions: list[Question]
    raters: list[RaterFigures]
    skips: list[tuple[str, int]]  # reason, how often

    @property
    def is_lopsided(self) -> bool:
        """Sides are thrown by lot, so their share strays from one half by chance alone: by how much?"""
        rate, n = self.left.rate, self.left.n
        return rate is not None and n >= 30 and abs(rate - 0.5) > 3 * (0.25 / n) ** 0.5


@dataclass(frozen=True)
class IdentityFlag:
    """A completion that seems to say who wrote it."""

    completion: Completion
    words: str
    before: str
    after: str


@dataclass(frozen=True)
class _Given:
    """A label with what was on the rater's screen."""

    rater: str
    value: dict[str, Any]
    shown: Sequence[int]
    seconds: float

    @property
    def picked_left(self) -> bool | None:
        """Whether the best one stood first on the screen; None when there is no single best one."""
        if not self.shown:
            return None
        if "ranks" in self.value:
            best = [int(pk) for pk, rank in self.value["ranks"].items() if rank == 1]
            return best[0] == self.shown[0] if len(best) == 1 and len(self.shown) == 2 else None
        if self.value.get("outcome") != "preferred":
            return None
        return bool(self.value["preferred"] == self.shown[0])


def report_of(round: Round) -> RoundReport:
    rows = list(
        Assignment.objects.filter(round=round, label__isnull=False)
        .order_by("-label_id")
        .values_list("task_id", "rater_id", "rater__username", "label__value", "shown", "label__seconds")[
            :LOOKED_AT
        ]
    )
    kind = cast(Kind, round.protocol.kind)
    completions = _completions_of(sorted({row[0] for row in rows}))
    judgements, given = [], []
    for task, rater, name, stored, shown, seconds in rows:
        value: dict[str, Any] = stored or {}  # a label that counts has one
        judgements.append(
            Judgement(
                task=task, prompt=task, rater=rater, kind=kind, value=value, completions=completions[task]
            )
        )
        given.append(_Given(name, value, tuple(shown or ()), seconds))
    timed = [one.seconds for one in given if one.shown]
    both_bad = sum(one.value.get("outcome") == "both_bad" for one in given)
    skips = Skip.objects.filter(task__round=round).values_list("reason").annotate(n=Count("pk"))
    return RoundReport(
        looked_at=len(given),
        agreement=pair_agreement(judgements),
        alpha=_alpha(judgements, round.protocol),
        left=_left(given),
        both_bad=Share(both_bad / len(given), len(given)) if given else Share(),
        seconds=median(timed) if timed else None,
        questions=_questions(given, round.protocol),
        raters=_raters(given),
        skips=list(skips.order_by("-n", "reason")),
    )


def _completions_of(task_ids: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """From the tasks: what came in by an import was never on a screen."""
    found: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for start in range(0, len(task_ids), TASKS_AT_ONCE):
        items = TaskItem.objects.filter(task__in=task_ids[start : start + TASKS_AT_ONCE])
        for task, completion in items.values_list("task_id", "completion_id"):
            found[task] += (completion,)
    return found


def _left(given: Iterable[_Given]) -> Share:
    sides = [side for one in given if (side := one.picked_left) is not None]
    return Share(sum(sides) / len(sides), len(sides)) if sides else Share()


def _raters(given: Sequence[_Given]) -> list[RaterFigures]:
    by_rater: dict[str, list[_Given]] = defaultdict(list)
    for one in given:
        by_rater[one.rater].append(one)
    return [
        RaterFigures(name=name, labels=len(own), seconds=median(one.seconds for one in own), left=_left(own))
        for name, own in sorted(by_rater.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _alpha(judgements: Iterable[Judgement], protocol: Protocol) -> list[tuple[str, float]]:
    """Krippendorff's alpha of each criterion that several raters scored."""
    if protocol.kind != Protocol.Kind.RATING:
        return []
    units: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for judgement in judgements:
        for key, score in judgement.value["scores"].items():
            units[key][judgement.task].append(score)
    found = []
    for criterion in protocol.options["criteria"]:
        alpha = krippendorff_alpha(units[criterion["key"]].values(), level="ordinal")
        if alpha is not None:
            found.append((criterion["name"], alpha))
    return found


def _questions(given: Sequence[_Given], protocol: Protocol) -> list[Question]:
    if protocol.kind == Protocol.Kind.RATING:
        return [_scores(given, criterion, protocol.options) for criterion in protocol.options["criteria"]]
    on_screen = [one for one in given if one.shown]  # imported labels never were
    if not on_screen:
        return []
    if protocol.kind == Protocol.Kind.COMPARISON:
        return [Question("By side of the screen", _sides(on_screen, protocol.options))]
    return [Question("Place on the screen of what was ranked first", _first_places(on_screen))]


def _sides(given: Iterable[_Given], options: dict[str, Any]) -> list[Answer]:
    """From "left is far better" over the tie to "right is far better": in balance, both halves are alike."""
    counts: Counter[tuple[str, int]] = Counter()
    for one in given:
        outcome = one.value["outcome"]
        if outcome == "preferred":
            counts["left" if one.picked_left else "right", one.value["strength"]] += 1
        else:
            counts[outcome, 0] += 1
    strengths = range(1, options["strengths"] + 1)
    word = HOW_MUCH if options["strengths"] == len(HOW_MUCH) else {s: f"step {s}" for s in strengths}
    name = STRENGTHS if word is HOW_MUCH else word
    if options["strengths"] == 1:
        name = word = {1: PLAIN}
    answers = [Answer(f"left {name[s]}", counts["left", s], "left", word[s]) for s in reversed(strengths)]
    if options.get("tie"):
        answers.append(Answer("tie", counts["tie", 0], "neither"))
    answers += [Answer(f"right {name[s]}", counts["right", s], "right", word[s]) for s in strengths]
    if options.get("both_bad"):
        answers.append(Answer("both bad", counts["both_bad", 0], "bad"))
    return answers


def _scores(given: Iterable[_Given], criterion: dict[str, str], options: dict[str, Any]) -> Question:
    counts = Counter(one.value["scores"][criterion["key"]] for one in given)
    scores = range(options["low"], options["high"] + 1)
    return Question(criterion["name"], [Answer(str(score), counts[score], "left") for score in scores])


def _first_places(given: Iterable[_Given]) -> list[Answer]:
    counts: Counter[int] = Counter()
    most = 0
    for one in given:
        most = max(most, len(one.shown))
        for pk, rank in one.value["ranks"].items():
            if rank == 1 and int(pk) in one.shown:
                counts[one.shown.index(int(pk)) + 1] += 1
    return [Answer(str(place), counts[place], "left") for place in range(1, most + 1)]


def identity_flags(round: Round, *, at_most: int = 5) -> list[IdentityFlag]:
    """Completions of the round that seem to name their writer. Reads every text of the round."""
    names = Policy.objects.filter(project=round.project_id).values_list("name", flat=True)
    # Short or wholly lower-case names ("starter") are ordinary words.
    telling = [name for name in names if len(name) >= 5 and not (name.isalpha() and name.islower())]
    words = [*IDENTITY, *telling]
    any_of_them = reduce(or_, (Q(text__icontains=word) for word in words))
    found = Completion.objects.filter(any_of_them, tasks__round=round).distinct().order_by("pk")
    pattern = re.compile("|".join(re.escape(word) for word in words), re.IGNORECASE)
    flags = []
    for completion in found.defer("html")[:at_most]:
        match = pattern.search(completion.text)
        if match is not None:
            before = completion.text[max(0, match.start() - EXCERPT) : match.start()]
            after = completion.text[match.end() : match.end() + EXCERPT]
            flags.append(IdentityFlag(completion, match.group(), before, after))
    return flags
