"""Write the items of one file: prompts, completions by an external policy, and judgements as labels.

A judgement from a file is stored exactly like one of ours: a closed round, a task with its completions, an
assignment that is done, and a label by an account nobody can sign in to. So it freezes and trains the same.

What came in before is known again: a prompt by its digest, a completion by prompt and text, a judgement by
a label key that follows from what it says.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from labeling.imports.collect import Collector
from labeling.imports.items import Comparison, Ranking, UnreadableFile
from labeling.imports.report import ImportReport, Progress, count
from labeling.imports.spool import ReadyItem, Spool
from labeling.imports.staging import publish
from labeling.models import (
    Assignment,
    Completion,
    Label,
    Policy,
    Project,
    Prompt,
    Protocol,
    RaterProgress,
    Round,
    Task,
    TaskItem,
)
from labeling.prompts import NewCompletion, add_completions, add_prompts
from labeling.protocols import version_of

LONGEST_PAUSE = 0.3  # seconds

_KEYS = UUID("6f0c6b0e-3f0b-5d55-9a53-8c1f6f6f1c58")  # namespace of the keys of imported labels

_PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    Protocol.Kind.COMPARISON: ("Which answer is better?", {"strengths": 4, "tie": True, "both_bad": True}),
    Protocol.Kind.RANKING: ("Rank the answers, the best one first.", {"ties": True, "partial": True}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """An item whose prompt and completions are stored."""

    prompt: Prompt
    completions: list[int]
    judgement: Comparison | Ranking
    key: UUID


class Store:
    """Writes batches into a hidden project (labeling.imports.staging), each in a transaction of its own, and
    counts into the report."""

    def __init__(self, *, project: Project, hidden: Project, report: ImportReport) -> None:
        self._project = project
        self._hidden = hidden
        self._report = report
        self._prompts: set[int] = set()
        self._completions: set[int] = set()
        self._keys: set[UUID] = set()
        self._policy: Policy | None = None
        self._round: Round | None = None
        self._rater: User | None = None
        self._collector = Collector(project=project, hidden=hidden, report=report)

    def store(self, spool: Spool, tell: Callable[[Progress], None]) -> None:
        done = 0
        for batch in spool.batches():
            tell(Progress(phase="storing", done=done, total=len(spool)))
            began = time.monotonic()
            with transaction.atomic():
                self._store_batch(batch)
            done += len(batch)
            if connection.vendor == "sqlite":  # one writer at a time: labels have their turn in between
                time.sleep(min(time.monotonic() - began, LONGEST_PAUSE))
        self._count_labels()

    def _store_batch(self, batch: Sequence[ReadyItem]) -> None:
        if not any(item.prompt for item in batch):  # a file of texts
            self._collector.add(batch, [], [])
            return
        prompts = self._store_prompts(batch)
        completions = self._store_completions(batch, prompts)
        self._store_judgements(batch, prompts, completions)
        self._collector.add(batch, prompts, completions)

    def publish(self) -> None:
        """Let everything be seen at once, inside the caller's transaction."""
        round = publish(self._hidden, into=self._project)
        self._report.round = round.pk if round is not None else None

    def _store_prompts(self, batch: Sequence[ReadyItem]) -> list[Prompt]:
        digests = {item.digest for item in batch}
        known = {p.digest: p for p in Prompt.objects.filter(project=self._project, digest__in=digests)}
        new = [item for item in batch if item.digest not in known]
        made = add_prompts(
            project=self._hidden,
            conversations=[item.prompt for item in new],
            html={item.digest: item.html for item in new},
        )
        prompts = known | {prompt.digest: prompt for prompt in made}
        for item in batch:
            prompt = prompts[item.digest]
            if prompt.pk in self._prompts:
                self._report.repeated += not item.replies
                continue
            self._prompts.add(prompt.pk)
            count(self._report.prompts, known=item.digest in known)
        return [prompts[item.digest] for item in batch]

    def _store_completions(self, batch: Sequence[ReadyItem], prompts: Sequence[Prompt]) -> list[list[int]]:
        """The ids of each item's completions; a text that stands in the project by an import is that one."""
        wanted = {
            (prompt.pk, reply.text): reply
            for item, prompt in zip(batch, prompts, strict=True)
            for reply in item.replies
        }
        if not wanted:
            return [[] for _ in batch]
        imported = Completion.objects.filter(
            prompt__in={pk for pk, _ in wanted}, policy__state=Policy.State.EXTERNAL
        )
        # The oldest of equal texts: rows come newest first, and the last one stays.
        ids = {
            (prompt_id, text): pk
            for pk, prompt_id, text in imported.order_by("-pk").values_list("pk", "prompt_id", "text")
        }
        missing = [key for key in wanted if key not in ids]
        for key in wanted.keys() & ids.keys():
            if ids[key] not in self._completions:
                self._completions.add(ids[key])
                self._report.completions.known += 1
        if missing:
            stored = add_completions(
                NewCompletion(
                    prompt_id=prompt_id,
                    policy_id=self._external_policy().pk,
                    text=text,
                    html=wanted[prompt_id, text].html,
                    sampling={"source": wanted[prompt_id, text].source},
                )
                for prompt_id, text in missing
            )
            ids.update(((c.prompt_id, c.text), c.pk) for c in stored)
            self._completions.update(c.pk for c in stored)
            self._report.completions.created += len(stored)
        return [
            [ids[prompt.pk, reply.text] for reply in item.replies]
            for item, prompt in zip(batch, prompts, strict=True)
        ]

    def _store_judgements(
        self, batch: Sequence[ReadyItem], prompts: Sequence[Prompt], completions: Sequence[list[int]]
    ) -> None:
        judged = [
            _Judged(
                prompt=prompt,
                completions=ids,
                judgement=item.judgement,
                key=self._key(prompt, ids, item.judgement),
            )
            for item, prompt, ids in zip(batch, prompts, completions, strict=True)
            if item.judgement is not None
        ]
        known = set(Label.objects.filter(key__in=[j.key for j in judged]).values_list("key", flat=True))
        new = []
        for one in judged:
            if one.key in self._keys:
                self._report.repeated += 1
                continue
            self._keys.add(one.key)
            comparison = isinstance(one.judgement, Comparison)
            tally = self._report.comparisons if comparison else self._report.rankings
            count(tally, known=one.key in known)
            if one.key not in known:
                new.append(one)
        if new:
            self._write(new)

    def _key(self, prompt: Prompt, completions: list[int], judgement: Comparison | Ranking) -> UUID:
        says = [self._project.pk, prompt.pk, sorted(completions), _value(judgement, completions)]
        return uuid5(_KEYS, json.dumps(says, sort_keys=True))

    def _write(self, new: list[_Judged]) -> None:
        round, rater = self._closed_round(new[0].judgement), self._imported_rater()
        tasks = Task.objects.bulk_create(
            Task(round=round, prompt=one.prompt, purpose=_purpose(one.prompt)) for one in new
        )
        TaskItem.objects.bulk_create(
            TaskItem(task=task, completion_id=pk)
            for task, one in zip(tasks, new, strict=True)
            for pk in one.completions
        )
        # Open first: an assignment that is done needs its label, and the label needs it.
        assignments = Assignment.objects.bulk_create(
            Assignment(round=round, task=task, slot=0, position=position, shown=one.completions)
            for position, (task, one) in enumerate(zip(tasks, new, strict=True), start=round.wanted)
        )
        labels = Label.objects.bulk_create(
            Label(
                assignment=assignment,
                rater=rater,
                protocol=round.protocol,
                value=_value(one.judgement, one.completions),
                shown=one.completions,
                key=one.key,
            )
            for assignment, one in zip(assignments, new, strict=True)
        )
        label = Label.objects.filter(assignment=OuterRef("pk"), key__in=[one.key for one in labels])
        Assignment.objects.filter(pk__in=[assignment.pk for assignment in assignments]).update(
            state=Assignment.State.DONE,
            rater=rater,
            label_id=Subquery(label.values("pk")[:1]),
            leased_at=round.opened_at,
        )
        round.wanted += len(new)

    def _count_labels(self) -> None:
        round = self._round
        if round is None:
            return
        round.next_position = round.wanted
        with transaction.atomic():
            round.save(update_fields=["wanted", "next_position"])
            RaterProgress.objects.create(
                round=round, rater=self._imported_rater(), cursor=round.wanted - 1, labels=round.wanted
            )

    def _closed_round(self, judgement: Comparison | Ranking) -> Round:
        if self._round is None:
            now = timezone.now()
            kind = Protocol.Kind.COMPARISON if isinstance(judgement, Comparison) else Protocol.Kind.RANKING
            question, options = _PROTOCOLS[kind]
            self._round = Round.objects.create(
                project=self._hidden,
                number=1,
                protocol=version_of(project=self._hidden, kind=kind, question=question, options=options),
                state=Round.State.CLOSED,
                plan={"source": "import", "file": self._report.name, "form": self._report.form},
                opened_at=now,
                closed_at=now,
            )
        return self._round

    def _external_policy(self) -> Policy:
        if self._policy is None:
            self._policy, _ = Policy.objects.get_or_create(
                project=self._hidden,
                name=f"imported: {self._report.name}"[:120],
                defaults={"state": Policy.State.EXTERNAL},
            )
        return self._policy

    def _imported_rater(self) -> User:
        if self._rater is None:
            name = f"imported-{self._project.slug}"[:150]
            rater, created = User.objects.get_or_create(username=name, defaults={"is_active": False})
            if created:
                rater.set_unusable_password()
                rater.save(update_fields=["password"])
            elif rater.is_active:
                raise UnreadableFile(
                    f"the account {name!r} belongs to a person; imported labels need that name"
                )
            self._rater = rater
        return self._rater


def _purpose(prompt: Prompt) -> str:
    return Task.Purpose.TEST if prompt.split == Prompt.Split.TEST else Task.Purpose.TRAIN


def _value(judgement: Comparison | Ranking, completions: Sequence[int]) -> dict[str, Any]:
    """The value of the label, as labeling.models.Label has it."""
    if isinstance(judgement, Ranking):
        ranks = [(r, pk) for pk, r in zip(completions, judgement.ranks, strict=True) if r is not None]
        return {"ranks": {str(pk): rank for rank, pk in sorted(ranks)}}
    if judgement.strength == 0:
        return {"outcome": "tie"}
    return {"outcome": "preferred", "preferred": completions[0], "strength": judgement.strength}
