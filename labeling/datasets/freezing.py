"""Freeze: labels of closed rounds, and collections, become a dataset that never changes again."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from django.conf import settings
from django.db import transaction

from labeling.comparisons import Aggregate, Rule, aggregate
from labeling.datasets import manifest as manifests
from labeling.datasets.errors import FreezeFailed, InvalidFreeze, NothingToFreeze
from labeling.datasets.examples import entries, example_rows
from labeling.datasets.files import DatasetWriter
from labeling.datasets.folders import draft_folder, folder_name, move_in
from labeling.datasets.judgements import JudgedTask, judged_tasks
from labeling.datasets.manifest import FORMAT, SPLIT_RULE, LabelCounts, Manifest, Parents, RoundEntry
from labeling.datasets.rows import prompt_rows, rows_of
from labeling.models import Assignment, Collection, Policy, PreferenceDataset, Project, Round, Skip


def folder_of(dataset: PreferenceDataset) -> Path:
    """Where the files of the dataset are."""
    return Path(settings.DATASETS_DIR) / dataset.folder


def freeze(
    *,
    project: Project,
    rounds: Sequence[Round],
    rule: str,
    name: str,
    collections: Sequence[Collection] = (),
    source: str = "",
) -> PreferenceDataset:
    """Aggregate every label of these closed rounds by the rule, and write the dataset with the collections.

    `source` says who judged; where it is left out, people did, unless everything came from files.

    Either the dataset is there with all its files, or a FreezeError says why not and nothing is left behind.
    Takes seconds for each ten thousand labels.
    """
    name = name.strip()
    rounds = sorted(rounds, key=lambda round: round.number)
    collections = sorted(collections, key=lambda collection: collection.pk)
    _refuse_what_cannot_be(project=project, rounds=rounds, collections=collections, rule=rule, name=name)
    closed = _closed_at(rounds)
    with draft_folder() as draft:
        manifest = _write(
            draft, project=project, rounds=rounds, collections=collections, rule=cast(Rule, rule)
        )
        return _publish(
            draft,
            project=project,
            closed=closed,
            collections=collections,
            name=name,
            columns={
                "rule": rule,
                "source": source or _source_of(rounds),
                "manifest": manifest,
                "digest": manifests.write(draft, manifest),
            },
        )


def _source_of(rounds: Sequence[Round]) -> str:
    by_hand = any(round.plan.get("source") != "import" for round in rounds)
    return PreferenceDataset.Source.HUMAN if by_hand else PreferenceDataset.Source.IMPORT


def _refuse_what_cannot_be(
    *, project: Project, rounds: Sequence[Round], collections: Sequence[Collection], rule: str, name: str
) -> None:
    if rule not in PreferenceDataset.Rule.values:
        raise InvalidFreeze(
            f"There is no rule {rule!r}: take one of {', '.join(PreferenceDataset.Rule.values)}."
        )
    longest = PreferenceDataset._meta.get_field("name").max_length or 0
    if not name or len(name) > longest or not name.isprintable():
        raise InvalidFreeze(f"A dataset needs a name of 1 to {longest} characters on one line.")
    if project.datasets.filter(name=name).exists():
        raise InvalidFreeze(_taken(project, name))
    if not rounds and not collections:
        raise InvalidFreeze("Choose at least one closed round, or what a file brought in.")
    strange = [
        *(round for round in rounds if round.project_id != project.pk),
        *(collection for collection in collections if collection.project_id != project.pk),
    ]
    if strange:
        raise InvalidFreeze(f"{strange[0]} belongs to another project than {project}.")


def _taken(project: Project, name: str) -> str:
    return f"{project} already has a dataset named {name!r}: frozen datasets stay; choose another name."


def _closed_at(rounds: Iterable[Round]) -> dict[Round, datetime | None]:
    """When each round was closed, read and where possible locked now; InvalidFreeze for one that is not."""
    numbers = [round.pk for round in rounds]
    with transaction.atomic():
        found = list(Round.objects.select_for_update(no_key=True).filter(pk__in=numbers).order_by("number"))
    for round in found:
        if round.state != Round.State.CLOSED:
            raise InvalidFreeze(f"{round} is not closed: its labels can still change. Close it first.")
    if len(found) < len(set(numbers)):
        raise InvalidFreeze("A round is no longer there.")
    return {round: round.closed_at for round in found}


@dataclass
class _Account:
    """What became of the labels; from it the manifest is written."""

    read: int = 0
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    completions_by_policy: Counter[int] = field(default_factory=Counter)
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    ties: int = 0
    pairs: int = 0
    informative: bool = False
    scores: dict[str, int] = field(default_factory=dict)  # criterion -> the first rating seen

    def add(self, task: JudgedTask, result: Aggregate) -> None:
        self.read += len(task.judgements)
        self.used += result.used
        self.left_out += result.left_out
        self.completions_by_policy.update(task.policies.values())
        for key, judgement in zip(task.keys, task.judgements, strict=True):
            self.hash.update(json.dumps([key, judgement.value], sort_keys=True).encode() + b"\n")
        self.pairs += len(result.comparisons)
        self.ties += sum(pair.strength == 0 for pair in result.comparisons)
        self.informative |= any(pair.strength for pair in result.comparisons)
        self.informative |= any(len(set(ranking.ranks)) > 1 for ranking in result.rankings)
        for rating in result.ratings:
            self.informative |= self.scores.setdefault(rating.criterion, rating.rating) != rating.rating

    def refuse_the_uninformative(self) -> None:
        if self.read == 0:
            raise NothingToFreeze("These rounds have no labels.")
        if self.informative:
            return
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        if self.scores:
            raise NothingToFreeze(
                f"All {self.read} labels give the same rating: a model can learn nothing from one class."
            )
        if self.pairs:
            raise NothingToFreeze(
                f"Every comparison is a tie ({self.ties} of {self.pairs}"
                f"{'; left out: ' + left_out if left_out else ''}): no completion is preferred to another."
            )
        raise NothingToFreeze(
            f"None of the {self.read} labels prefers one completion to another ({left_out})."
        )


def _write(
    draft: Path, *, project: Project, rounds: Sequence[Round], collections: Sequence[Collection], rule: Rule
) -> Manifest:
    raters = _rater_numbers(rounds)
    account = _Account()
    with DatasetWriter(draft) as writer:
        for task in judged_tasks(rounds):
            result = aggregate(task.judgements, rule=rule)
            account.add(task, result)
            for table, row in rows_of(task, result, raters=raters):
                writer.write(table, task.prompt.split, row)
        if not collections:
            account.refuse_the_uninformative()
        for table, split, example_row in example_rows(collections):
            writer.write(table, split, example_row)
        for split, prompt_row in prompt_rows(rounds, collections):
            writer.write("prompts", split, prompt_row)
    _refuse_lost_labels(account, rounds)
    return Manifest(
        format=FORMAT,
        project=project.slug,
        rule=rule,
        split=SPLIT_RULE,
        parents=_parents(rounds, collections, account),
        labels=LabelCounts(
            read=account.read,
            used=account.used,
            left_out=dict(sorted(account.left_out.items())),
            sha256=account.hash.hexdigest(),
        ),
        raters=len(raters),
        tables=writer.counts(),
        files=manifests.sealed_files(draft),
    )


def _labels(rounds: Sequence[Round]) -> int:
    return Assignment.objects.filter(round__in=rounds, label__isnull=False).count()


def _refuse_lost_labels(account: _Account, rounds: Sequence[Round]) -> None:
    stored = _labels(rounds)
    accounted = account.used + account.left_out.total()
    if not stored == account.read == accounted:
        raise FreezeFailed(
            f"{stored} labels are stored, {account.read} were read and {accounted} accounted for: "
            "the labels changed meanwhile, or one was lost. Nothing was frozen; try again."
        )


def _rater_numbers(rounds: Sequence[Round]) -> dict[int, int]:
    """Raters by number from 1, in the order in which they joined the house: stable, and no names."""
    ids = (
        Assignment.objects.filter(round__in=rounds, label__isnull=False)
        .order_by("rater_id")
        .values_list("rater_id", flat=True)
        .distinct()
    )
    return {rater: number for number, rater in enumerate(ids, start=1) if rater is not None}


def _parents(rounds: Sequence[Round], collections: Sequence[Collection], account: _Account) -> Parents:
    policies = Policy.objects.in_bulk(list(account.completions_by_policy))
    parents = Parents(
        rounds=[
            RoundEntry(
                number=round.number,
                kind=round.protocol.kind,
                protocol={
                    "version": round.protocol.version,
                    "question": round.protocol.question,
                    "options": round.protocol.options,
                },
                overlap=round.overlap,
                labels=_labels([round]),
                raters=len(_rater_numbers([round])),
                skips=Skip.objects.filter(task__round=round).count(),
            )
            for round in rounds
        ],
        policies=[
            {
                "name": policies[pk].name,
                "completions_judged": account.completions_by_policy[pk],
            }
            for pk in sorted(policies)
        ],
    )
    if collections:  # datasets without any keep the bytes that they had before there were some
        parents["collections"] = entries(collections)
    return parents


def _publish(
    draft: Path,
    *,
    project: Project,
    closed: dict[Round, datetime | None],
    collections: Sequence[Collection],
    name: str,
    columns: dict[str, Any],
) -> PreferenceDataset:
    """Make the row, then rename the folder, then commit: a row never stands without its files."""
    folder = folder_name(project, name)
    with transaction.atomic():
        if _closed_at(closed) != closed:
            raise FreezeFailed(
                "A round was opened and closed again meanwhile. Nothing was frozen: try again."
            )
        dataset, is_new = PreferenceDataset.objects.get_or_create(
            project=project,
            name=name,
            defaults={"folder": folder, **columns},
        )
        if not is_new:
            raise InvalidFreeze(_taken(project, name))
        dataset.rounds.set(closed)
        dataset.collections.set(collections)
        move_in(draft, folder)
    return dataset
