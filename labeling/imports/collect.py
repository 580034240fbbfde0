"""Write the examples of one file: a collection, in the hidden project until the import is shown.

What the project holds already is known again by what it says, and so is what stands in the file twice.
"""

import hashlib
import json
from collections.abc import Sequence

from labeling.imports.report import ImportReport, count
from labeling.imports.spool import ReadyItem
from labeling.models import Collection, Example, Project, Prompt
from labeling.models.prompts import Message
from labeling.prompts import split_of


class Collector:
    def __init__(self, *, project: Project, hidden: Project, report: ImportReport) -> None:
        self._project = project
        self._hidden = hidden
        self._report = report
        self._seen: set[str] = set()
        self._collection: Collection | None = None

    def add(
        self, batch: Sequence[ReadyItem], prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]
    ) -> None:
        """Store what a batch holds of examples. Its prompts and completions are stored already."""
        found: dict[str, Example] = {}
        for place, item in enumerate(batch):
            if item.example is None:
                continue
            digest = digest_of(item)
            if digest in self._seen:
                self._report.repeated += 1
                continue
            self._seen.add(digest)
            found[digest] = Example(
                digest=digest,
                good=item.example.good,
                text=item.example.text,
                **(
                    {"split": split_of(as_prompt(item.example.text), self._project.test_percent)}
                    if item.example.text
                    else {"prompt": prompts[place], "completion_id": completions[place][0]}
                ),
            )
        known = self._known(found)
        for digest in found:
            count(self._report.examples, known=digest in known)
        new = [example for digest, example in found.items() if digest not in known]
        if new:
            self._write(new, batch)

    def _known(self, found: dict[str, Example]) -> set[str]:
        stored = Example.objects.filter(collection__project=self._project, digest__in=list(found))
        return set(stored.values_list("digest", flat=True))

    def _write(self, new: list[Example], batch: Sequence[ReadyItem]) -> None:
        if self._collection is None:
            kind = next(item.example.kind for item in batch if item.example is not None)
            self._collection = Collection.objects.create(
                project=self._hidden, kind=kind, name=self._report.name
            )
            self._report.collection = self._collection.pk
        for example in new:
            example.collection = self._collection
        Example.objects.bulk_create(new)
        self._collection.rows += len(new)
        self._collection.save(update_fields=["rows"])


def as_prompt(text: str) -> list[Message]:
    """A text as what its side of the split follows from."""
    return [Message(role="user", content=text)]


def digest_of(item: ReadyItem) -> str:
    """sha256 of all that an example says."""
    assert item.example is not None
    says = [item.example.kind, item.digest, [reply.text for reply in item.replies], item.example.good]
    content = json.dumps([*says, item.example.text], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
