"""What a round is to ask: its plan, and the choice of prompts and completions. Reads only; `rounds` writes.

Everything here follows from the plan's seed and the round's number, so asking twice gives the same answer.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Literal, Self

from django.db.models import Count, QuerySet

from labeling.models import Completion, Policy, Prompt, Protocol, Round, RoundNotReady, Task

Purpose, Split = Task.Purpose, Prompt.Split
CHUNK = 500  # prompts whose completions are looked at in one query


class InvalidPlan(Exception):
    """A plan that no round can follow; the message says why."""


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """How many prompts for which purpose, how many completions and labels of each, and how to sample."""

    source: Literal["sample", "existing"]  # ask a policy to write completions, or take what is there
    train_prompts: int
    test_prompts: int = 0
    gate_prompts: int = 0
    completions_per_task: int = 2
    overlap: int = 1  # labels of each train task
    test_overlap: int = 1  # labels of each test and gate task
    temperature: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(**data)

    def fitted_to(self, protocol: Protocol) -> Self:
        """The same plan with as many completions in a task as the protocol can show; InvalidPlan if none."""
        match protocol.kind:
            case Protocol.Kind.RATING:
                fitted = replace(self, completions_per_task=1, gate_prompts=0)  # ratings never become pairs
            case Protocol.Kind.COMPARISON:
                fitted = replace(self, completions_per_task=2)
            case _:
                fitted = self
        fitted._check()
        return fitted

    def labels_of(self, purpose: str) -> int:
        return self.overlap if purpose == Purpose.TRAIN else self.test_overlap

    def _check(self) -> None:
        if self.source not in ("sample", "existing"):
            raise InvalidPlan(f"Completions come from “sample” or “existing”, not from “{self.source}”.")
        if min(self.train_prompts, self.test_prompts, self.gate_prompts) < 0:
            raise InvalidPlan("Numbers of prompts cannot be negative.")
        if self.train_prompts + self.test_prompts + self.gate_prompts == 0:
            raise InvalidPlan("A round needs at least one prompt.")
        if not 1 <= self.completions_per_task <= 16:
            raise InvalidPlan("A task shows 1 to 16 completions.")
        if not 1 <= min(self.overlap, self.test_overlap) <= max(self.overlap, self.test_overlap) <= 100:
            raise InvalidPlan("Each task needs from 1 to 100 labels.")
        if self.temperature < 0 or self.max_new_tokens < 1:
            raise InvalidPlan("Sampling needs a temperature of at least 0 and at least one new token.")


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """A task whose completions are still to be written: one by each policy listed."""

    prompt: Prompt
    purpose: str
    policies: list[Policy]


@dataclass(frozen=True, kw_only=True)
class NewTask:
    prompt_id: int
    purpose: str
    completion_ids: Sequence[int]


def wanted(round: Round) -> list[TaskRequest]:
    """Completions to write before the round can open. Prefers prompts that no earlier round used.

    Train and test tasks: all completions by the new policy, else by the current one. Gate tasks: one by each.
    """
    plan = RoundPlan.from_json(round.plan)
    writer = round.new_policy or round.old_policy
    if writer is None:
        raise RoundNotReady("The project has no policy that could write completions.")
    policies: dict[str, list[Policy]] = {
        Purpose.TRAIN: [writer] * plan.completions_per_task,
        Purpose.TEST: [writer] * plan.completions_per_task,
        Purpose.GATE: [policy for policy in (round.new_policy, round.old_policy) if policy is not None],
    }
    chosen = _share_out(plan, round, train=_prompts(round, Split.TRAIN), test=_prompts(round, Split.TEST))
    prompts = Prompt.objects.in_bulk([pk for pks in chosen.values() for pk in pks])
    return [
        TaskRequest(prompt=prompts[pk], purpose=purpose, policies=policies[purpose])
        for purpose, pks in chosen.items()
        for pk in pks
    ]


def from_existing(round: Round) -> Iterator[NewTask]:
    """Tasks out of completions that the project has already; fewer than planned when there are not enough."""
    plan = RoundPlan.from_json(round.plan)
    least = min(plan.completions_per_task, 2)
    for purpose, split, count in (
        (Purpose.TRAIN, Split.TRAIN, plan.train_prompts),
        (Purpose.TEST, Split.TEST, plan.test_prompts),
    ):
        with_enough = _completions(round, split).values("prompt").annotate(n=Count("pk")).filter(n__gte=least)
        prompts = _in_order_of_choice(round, with_enough.order_by("prompt").values_list("prompt", flat=True))
        rng = random.Random(f"{plan.seed}-{round.number}-{purpose}")
        tasks = (
            NewTask(prompt_id=pk, purpose=purpose, completion_ids=_pick(plan, round, rows, rng))
            for pk, rows in _with_completions(prompts)
            if len(rows) >= least
        )
        yield from islice(tasks, count)
    if _has_gate(round):
        yield from islice(_gate_from_existing(round), plan.gate_prompts)


@dataclass(frozen=True)
class _Written:
    pk: int
    policy_id: int


def _gate_from_existing(round: Round) -> Iterator[NewTask]:
    sides = [pk for pk in (round.new_policy_id, round.old_policy_id) if pk is not None]
    by_both = _completions(round, Split.TEST).filter(policy__in=sides).values("prompt")
    by_both = by_both.annotate(n=Count("policy", distinct=True)).filter(n=2)
    prompts = _in_order_of_choice(round, by_both.order_by("prompt").values_list("prompt", flat=True))
    for pk, rows in _with_completions(prompts):
        first = {row.policy_id: row.pk for row in reversed(rows) if row.policy_id in sides}
        if len(first) == 2:  # the two may have written the same text
            yield NewTask(prompt_id=pk, purpose=Purpose.GATE, completion_ids=[first[side] for side in sides])


def _pick(plan: RoundPlan, round: Round, rows: list[_Written], rng: random.Random) -> list[int]:
    """Completions of one task at random, those of the new policy first."""
    rng.shuffle(rows)
    rows.sort(key=lambda row: row.policy_id != round.new_policy_id)
    return [row.pk for row in rows[: plan.completions_per_task]]


def _with_completions(prompt_ids: Sequence[int]) -> Iterator[tuple[int, list[_Written]]]:
    """Each prompt with its completions, each text once: two that read the same cannot be compared."""
    for start in range(0, len(prompt_ids), CHUNK):
        chunk = prompt_ids[start : start + CHUNK]
        rows: dict[int, dict[str, _Written]] = defaultdict(dict)
        found = Completion.objects.filter(prompt__in=chunk).order_by("pk")
        for prompt_id, pk, policy_id, text in found.values_list("prompt", "pk", "policy", "text"):
            rows[prompt_id].setdefault(text, _Written(pk, policy_id))
        yield from ((pk, list(rows[pk].values())) for pk in chunk)


def _share_out(
    plan: RoundPlan, round: Round, *, train: Sequence[int], test: Sequence[int]
) -> dict[str, Sequence[int]]:
    """Prompts by purpose. The gate takes other prompts than the test tasks while there are others."""
    behind = [*test[plan.test_prompts :], *test[: plan.test_prompts]]
    return {
        Purpose.TRAIN: train[: plan.train_prompts],
        Purpose.TEST: test[: plan.test_prompts],
        Purpose.GATE: behind[: plan.gate_prompts] if _has_gate(round) else [],
    }


def _has_gate(round: Round) -> bool:
    sides = (round.new_policy_id, round.old_policy_id)
    return None not in sides and sides[0] != sides[1]


def _prompts(round: Round, split: str) -> list[int]:
    of_split = Prompt.objects.filter(project=round.project_id, split=split).order_by("pk")
    return _in_order_of_choice(round, of_split.values_list("pk", flat=True))


def _in_order_of_choice(round: Round, prompt_ids: Iterable[int]) -> list[int]:
    """At random by the plan's seed; prompts that an earlier round used come last."""
    earlier = Task.objects.filter(round__project=round.project_id, round__number__lt=round.number)
    used = set(earlier.values_list("prompt", flat=True).distinct())
    order = list(prompt_ids)
    random.Random(f"{round.plan['seed']}-{round.number}").shuffle(order)
    order.sort(key=used.__contains__)
    return order


def _completions(round: Round, split: str) -> QuerySet[Completion]:
    """By the project's policies: what an import has not stored whole yet is by another one's."""
    return Completion.objects.filter(
        prompt__project=round.project_id, prompt__split=split, policy__project=round.project_id
    )
