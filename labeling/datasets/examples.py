"""Collections as rows: demonstrations, single judgements and texts, as they came in."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypedDict

from labeling.datasets.rows import DemonstrationRow, Row, TextRow, UnpairedRow, messages_of
from labeling.models import Collection, Example
from labeling.models.prompts import Message

EXAMPLES_AT_ONCE = 500


class CollectionEntry(TypedDict):
    """A collection in the manifest."""

    kind: str
    name: str
    rows: int
    sha256: str  # of the examples themselves: their digests, in order


def example_rows(collections: Sequence[Collection]) -> Iterator[tuple[str, str, Row]]:
    """(table, split, row) of every example, in the order in which they came in."""
    for collection in collections:
        found = collection.examples.select_related("prompt", "completion").order_by("pk")
        for example in found.iterator(chunk_size=EXAMPLES_AT_ONCE):
            yield collection.kind, _split_of(example), _row(example)


def _split_of(example: Example) -> str:
    return example.split if example.prompt is None else example.prompt.split


def _row(example: Example) -> Row:
    if example.prompt is None or example.completion is None:
        return TextRow(text=example.text)
    prompt = messages_of(example.prompt.messages)
    completion = [Message(role="assistant", content=example.completion.text)]
    if example.good is None:
        return DemonstrationRow(prompt=prompt, completion=completion)
    return UnpairedRow(prompt=prompt, completion=completion, label=example.good)


def entries(collections: Sequence[Collection]) -> list[CollectionEntry]:
    return [
        CollectionEntry(
            kind=collection.kind, name=collection.name, rows=collection.rows, sha256=_hash(collection)
        )
        for collection in collections
    ]


def _hash(collection: Collection) -> str:
    digest = hashlib.sha256()
    for said in collection.examples.order_by("pk").values_list("digest", flat=True).iterator():
        digest.update(said.encode() + b"\n")
    return digest.hexdigest()
