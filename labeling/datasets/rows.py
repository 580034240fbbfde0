"""Rows of the frozen tables: TRL's dataset formats, messages always conversational."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from django.db.models import Q

from labeling.comparisons import Aggregate
from labeling.datasets.judgements import JudgedTask
from labeling.models import Collection, Example, Prompt, Round, Task
from labeling.models.prompts import Message

PROMPTS_AT_ONCE = 1000


class PairRow(TypedDict):
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float
    weight: float
    p: float
    strength: int


class RankingRow(TypedDict):
    prompt: list[Message]
    completions: list[list[Message]]
    ranks: list[int]
    weight: float


class RatingRow(TypedDict):
    prompt: list[Message]
    completion: list[Message]
    rating: int
    criterion: str
    rater: int
    weight: float


class UnpairedRow(TypedDict):
    prompt: list[Message]
    completion: list[Message]
    label: bool


class DemonstrationRow(TypedDict):
    prompt: list[Message]
    completion: list[Message]


class TextRow(TypedDict):
    text: str


class PromptRow(TypedDict):
    prompt: list[Message]


Row = PairRow | RankingRow | RatingRow | UnpairedRow | DemonstrationRow | TextRow | PromptRow


def rows_of(task: JudgedTask, result: Aggregate, *, raters: Mapping[int, int]) -> Iterator[tuple[str, Row]]:
    """Rows of one task as (table, row). `raters` gives each rater's number: names never leave the house."""
    prompt = messages_of(task.prompt.messages)

    def said(completion: int) -> list[Message]:
        return [Message(role="assistant", content=task.texts[completion])]

    for pair in result.comparisons:
        yield (
            "pairs",
            PairRow(
                prompt=prompt,
                chosen=said(pair.chosen),
                rejected=said(pair.rejected),
                margin=pair.margin,
                weight=pair.weight,
                p=pair.p,
                strength=pair.strength,
            ),
        )
    for ranking in result.rankings:
        yield (
            "rankings",
            RankingRow(
                prompt=prompt,
                completions=[said(completion) for completion in ranking.completions],
                ranks=list(ranking.ranks),
                weight=ranking.weight,
            ),
        )
    for rating in result.ratings:
        yield (
            "ratings",
            RatingRow(
                prompt=prompt,
                completion=said(rating.completion),
                rating=rating.rating,
                criterion=rating.criterion,
                rater=raters[rating.rater],
                weight=rating.weight,
            ),
        )


def prompt_rows(
    rounds: Sequence[Round], collections: Sequence[Collection] = ()
) -> Iterator[tuple[str, PromptRow]]:
    """Every prompt that these rounds asked or collections answer, as (split, row); others may come and go."""
    asked = Q(pk__in=Task.objects.filter(round__in=rounds).values("prompt"))
    if collections:
        answered = Example.objects.filter(collection__in=collections, prompt__isnull=False)
        asked |= Q(pk__in=answered.values("prompt"))
    prompts = Prompt.objects.filter(asked).order_by("pk").values_list("split", "messages")
    for split, messages in prompts.iterator(chunk_size=PROMPTS_AT_ONCE):
        yield split, PromptRow(prompt=messages_of(messages))


def messages_of(messages: list[Message]) -> list[Message]:
    """Role and content alone, in this order: whatever else a turn carries stays at home."""
    return [Message(role=turn["role"], content=turn["content"]) for turn in messages]
