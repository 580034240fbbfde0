"""Between reading and storing: the checked and rendered items of a file, on disk.

Reading a large file takes minutes, mostly for rendering its markdown; on SQLite every other writer waits
for a transaction that stores. So everything slow happens before, and memory holds one batch.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from types import TracebackType
from typing import Self

from labeling.imports.items import Comparison, Example, Item, Ranking
from labeling.models.prompts import Message
from labeling.prompts import digest_of
from labeling.rendering import render_markdown

BATCH = 200  # items stored by one transaction


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyReply:
    text: str
    html: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyItem:
    """An item with everything that can be known without the database."""

    line: int
    prompt: list[Message]
    digest: str
    html: list[str]
    replies: tuple[ReadyReply, ...]
    judgement: Comparison | Ranking | None
    example: Example | None = None


class Spool:
    """Items go in one by one and come out in batches, once or more often."""

    def __init__(self) -> None:
        self._items = 0
        # Turns come again and again: the beginning of a tree stands in each of its prompts.
        self._rendered = lru_cache(maxsize=256)(render_markdown)
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", prefix="ratchet-import-", newline="\n")  # noqa: SIM115

    def add(self, item: Item) -> None:
        judgement = item.judgement
        record = {
            "line": item.line,
            "prompt": item.prompt,
            "digest": digest_of(item.prompt),
            "html": [self._rendered(turn["content"]) for turn in item.prompt],
            "replies": [[r.text, render_markdown(r.text), r.source] for r in item.replies],
            "strength": judgement.strength if isinstance(judgement, Comparison) else None,
            "ranks": judgement.ranks if isinstance(judgement, Ranking) else None,
            "example": asdict(item.example) if item.example is not None else None,
        }
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

        self._items += 1

    def __len__(self) -> int:
        return self._items

    def batches(self) -> Iterator[list[ReadyItem]]:
        self._file.seek(0)
        items = (_ready_item(line) for line in self._file)
        while batch := list(islice(items, BATCH)):
            yield batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _ready_item(line: str) -> ReadyItem:
    record = json.loads(line)
    judgement: Comparison | Ranking | None = None
    if record["strength"] is not None:
        judgement = Comparison(strength=record["strength"])
    elif record["ranks"] is not None:
        judgement = Ranking(ranks=tuple(record["ranks"]))
    return ReadyItem(
        line=record["line"],
        prompt=record["prompt"],
        digest=record["digest"],
        html=record["html"],
        replies=tuple(ReadyReply(text=t, html=h, source=s) for t, h, s in record["replies"]),
        judgement=judgement,
        example=Example(**record["example"]) if record["example"] is not None else None,
    )
