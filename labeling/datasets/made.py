"""Datasets that an AI made: rows come in as they are, and are frozen like those of people, by another source.

`drafted` writes the files, outside of any transaction; `Drafted.publish` makes the row and moves them to
their place.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction

from labeling.datasets import manifest as manifests
from labeling.datasets.files import DatasetWriter
from labeling.datasets.folders import draft_folder, folder_name, move_in
from labeling.datasets.manifest import FORMAT, SPLIT_RULE, LabelCounts, Made, Manifest, Parents
from labeling.datasets.rows import Row
from labeling.models import Constitution, PreferenceDataset, Project

LINEAGE = "lineage.jsonl"


@dataclass(frozen=True)
class Drafted:
    """A dataset whose files are written and not yet in their place."""

    folder: Path
    project: Project
    manifest: Manifest

    def publish(self, *, name: str, constitution: Constitution | None = None) -> PreferenceDataset:
        """Make the row, then rename the folder: call it in the transaction that it belongs to."""
        digest = manifests.write(self.folder, self.manifest)
        with transaction.atomic():
            free = _free(self.project, name)
            dataset = PreferenceDataset.objects.create(
                project=self.project,
                name=free,
                rule=self.manifest["rule"],
                source=PreferenceDataset.Source.AI,
                constitution=constitution,
                folder=folder_name(self.project, free),
                manifest=self.manifest,
                digest=digest,
            )
            move_in(self.folder, dataset.folder)
        return dataset


@contextmanager
def drafted(
    *,
    project: Project,
    rows: Iterable[tuple[str, str, Row]],
    lineage: Iterable[Mapping[str, Any]],
    made: Made,
    left_out: Mapping[str, int],
) -> Iterator[Drafted]:
    """Write rows (table, split, row) and what they were made of. Raises FreezeFailed when it cannot.

    `left_out`: of what was written, how many rows teach nothing, by reason.
    """
    counted: Counter[str] = Counter()
    digest = hashlib.sha256()
    with draft_folder() as draft:
        with DatasetWriter(draft) as writer:
            for table, split, row in rows:
                counted[table] += 1
                digest.update(json.dumps([table, split, row], sort_keys=True).encode() + b"\n")
                writer.write(table, split, row)
        with open(draft / LINEAGE, "w", encoding="utf-8") as file:
            for entry in lineage:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        used = sum(count for table, count in counted.items() if table != "prompts")
        yield Drafted(
            draft,
            project,
            Manifest(
                format=FORMAT,
                project=project.slug,
                rule=PreferenceDataset.Rule.EACH_LABEL,
                split=SPLIT_RULE,
                parents=Parents(
                    rounds=[], policies=[{"name": made["policy"], "completions_judged": counted["prompts"]}]
                ),
                labels=LabelCounts(
                    read=used + sum(left_out.values()),
                    used=used,
                    left_out={reason: count for reason, count in sorted(left_out.items()) if count},
                    sha256=digest.hexdigest(),
                ),
                raters=0,
                tables=writer.counts(),
                files=manifests.sealed_files(draft),
                made=made,
            ),
        )


def _free(project: Project, name: str) -> str:
    taken = set(project.datasets.filter(name__startswith=name).values_list("name", flat=True))
    numbered = (f"{name} ({number})" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(one for one in numbered if one not in taken)
