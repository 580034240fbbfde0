"""Audits of AI preferences: a round of sampled pairs, and how far people agree with the AI about them.

Raters meet an audit as any other round of comparisons: nothing they are shown comes from the AI's verdict,
and which completion stands first in a pair is a coin's.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet

from labeling import datasets, prompts, protocols, rounds
from labeling.agreement import Share, pair_agreement
from labeling.ai_agreement import AiAgreement, AiJudged, agreement_with_ai
from labeling.comparisons import Judgement, votes_of
from labeling.datasets.files import SPLITS
from labeling.datasets.judgements import judged_tasks
from labeling.models import Audit, Policy, PreferenceDataset, Project, Protocol, Round
from labeling.models.audits import AuditedPair

# What people are asked when the project never compared.
QUESTION = "Which is better?"
OPTIONS: dict[str, Any] = {"strengths": 4, "tie": True, "both_bad": True}


class AuditRefused(Exception):
    """No audit can be made; the message says why."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All audits of a dataset together. `humans`: how far raters agree with each other on the same pairs."""

    agreement: AiAgreement
    humans: Share
    audits: list[Audit]
    sampled: int  # pairs put before people


def of_ai() -> Q:
    """Datasets with pairs that an AI judged."""
    return Q(source=PreferenceDataset.Source.AI, manifest__tables__has_key="pairs")


def can_be_audited(dataset: PreferenceDataset) -> bool:
    is_ai = dataset.source == PreferenceDataset.Source.AI
    return is_ai and "pairs" in dataset.manifest.get("tables", {})


def unaudited(found: QuerySet[PreferenceDataset]) -> QuerySet[PreferenceDataset]:
    """Of these, the AI's pairs that nobody has judged a sample of yet."""
    judged = Audit.objects.filter(round__assignments__label__isnull=False).values("dataset")
    return found.filter(of_ai()).exclude(pk__in=judged)


def open_audit(*, dataset: PreferenceDataset, pairs: int, overlap: int = 1, seed: int = 0) -> Round:
    """A round of so many pairs of the dataset, by chance, that no earlier audit asked about.

    Raises AuditRefused, DamagedDataset, or InvalidPlan for numbers that no round can have.
    """
    if not can_be_audited(dataset):
        raise AuditRefused(f"{dataset} holds no pairs that an AI judged.")
    datasets.verify(datasets.folder_of(dataset), digest=dataset.digest)
    before = {pair["row"] for audit in dataset.audits.all() for pair in audit.pairs}
    rows = {number: row for number, row in enumerate(_pairs_of(dataset)) if number not in before}
    if not rows:
        raise AuditRefused(f"People have been asked about every pair of {dataset} already.")
    chance = random.Random(f"{seed} {len(before)}")
    chosen = sorted(chance.sample(sorted(rows), min(pairs, len(rows))))
    project = dataset.project
    with transaction.atomic():
        tasks, audited = _tasks(dataset, {number: rows[number] for number in chosen}, chance)
        plan = rounds.RoundPlan(
            source="existing",
            train_prompts=len(tasks),
            overlap=overlap,
            test_overlap=overlap,
            seed=seed,
        )
        round = rounds.create_round(project=project, protocol=_protocol(project), plan=plan, tasks=tasks)
        Audit.objects.create(dataset=dataset, round=round, pairs=audited)
    return round


def _pairs_of(dataset: PreferenceDataset) -> Iterator[dict[str, Any]]:
    for split in SPLITS:
        path = datasets.folder_of(dataset) / "pairs" / f"{split}.jsonl"
        if path.exists():
            with open(path, encoding="utf-8") as file:
                yield from map(json.loads, file)


def _tasks(
    dataset: PreferenceDataset, rows: dict[int, dict[str, Any]], chance: random.Random
) -> tuple[list[rounds.NewTask], list[AuditedPair]]:
    """Store what people are to see: prompts, and both completions of each pair in an order by chance."""
    policy = _writer(dataset)
    asked = prompts.add_prompts(
        project=dataset.project, conversations=[row["prompt"] for row in rows.values()]
    )
    placed = [
        (row, (row["chosen"], row["rejected"]), row["p"])
        if chance.random() < 0.5
        else (row, (row["rejected"], row["chosen"]), 1 - row["p"])
        for row in rows.values()
    ]
    stored = prompts.add_completions(
        prompts.NewCompletion(
            prompt_id=prompt.pk,
            policy_id=policy.pk,
            text="\n\n".join(turn["content"] for turn in turns),
            sampling={"dataset": dataset.pk},
        )
        for prompt, (_, both, _) in zip(asked, placed, strict=True)
        for turns in both
    )
    tasks, audited = [], []
    for place, (number, prompt) in enumerate(zip(rows, asked, strict=True)):
        first, second = stored[2 * place].pk, stored[2 * place + 1].pk
        tasks.append(
            rounds.NewTask(prompt_id=prompt.pk, purpose=prompt.split, completion_ids=[first, second])
        )
        audited.append(AuditedPair(row=number, first=first, second=second, p=placed[place][2]))
    return tasks, audited


def _writer(dataset: PreferenceDataset) -> Policy:
    """Whose completions they are, by the manifest; a policy of which only completions are known, else."""
    name = dataset.manifest.get("made", {}).get("policy", "")
    found = Policy.objects.filter(project=dataset.project_id, name=name).first()
    if found is not None:
        return found
    made, _ = Policy.objects.get_or_create(
        project=dataset.project,
        name=f"the writer of {dataset}"[:120],
        defaults={"state": Policy.State.EXTERNAL},
    )
    return made


def _protocol(project: Project) -> Protocol:
    """What the project's comparisons ask, in its newest version."""
    comparing = project.protocols.filter(kind=Protocol.Kind.COMPARISON).order_by("-version").first()
    return comparing or protocols.version_of(
        project=project, kind=Protocol.Kind.COMPARISON, question=QUESTION, options=OPTIONS
    )


def report(dataset: PreferenceDataset) -> AuditReport | None:
    """How far people agree with the AI so far; None before the first audit. Reads all its labels."""
    audits = list(dataset.audits.select_related("round").order_by("pk"))
    if not audits:
        return None
    judged: list[AiJudged] = []
    judgements: list[Judgement] = []
    for audit in audits:
        said = {(pair["first"], pair["second"]): float(pair["p"]) for pair in audit.pairs}
        for task in judged_tasks([audit.round]):
            first, second = sorted(task.texts)
            p = said.get((first, second))
            if p is None:
                continue
            votes = [vote for one in task.judgements for vote in votes_of(one).values()]
            judged.append(AiJudged(task.prompt.pk, p, votes))
            judgements += task.judgements
    return AuditReport(
        agreement=agreement_with_ai(judged),
        humans=pair_agreement(judgements).overall,
        audits=audits,
        sampled=sum(len(audit.pairs) for audit in audits),
    )
