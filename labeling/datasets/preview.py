"""The first row of each table of a frozen dataset, as people read it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeling.datasets.files import SPLITS, TABLES
from labeling.models.prompts import Message
from labeling.rendering import render_markdown

LONGEST_ROW = 1_000_000  # characters: a longer one is not shown
SHOWN = 1_500  # characters of a text


@dataclass(frozen=True)
class Text:
    """`html` is sanitised."""

    caption: str
    html: str
    tone: str = ""  # good, bad or neither


@dataclass(frozen=True, kw_only=True)
class RowPreview:
    table: str
    prompt: list[Text]
    completions: list[Text]
    facts: str  # what the other columns say


def first_rows(folder: Path) -> list[RowPreview]:
    """Of each table that has a row, of train before test. Reads one line of a file for each."""
    rows = ((table, _first_row(folder / table)) for table in TABLES)
    return [_preview(table, row) for table, row in rows if row is not None]


def _first_row(folder: Path) -> dict[str, Any] | None:
    for split in SPLITS:
        try:
            with open(folder / f"{split}.jsonl", encoding="utf-8") as file:
                line = file.readline(LONGEST_ROW)
        except FileNotFoundError:
            continue
        return json.loads(line) if line.endswith("\n") else None
    return None


def _preview(table: str, row: dict[str, Any]) -> RowPreview:
    completions, facts = _READERS.get(table, _nothing)(row)
    turns = row.get("prompt", [])
    prompt = [_text([turn], turn["role"].capitalize() if len(turns) > 1 else "Prompt") for turn in turns]
    return RowPreview(table=table, prompt=prompt, completions=completions, facts=facts)


def _pair(row: dict[str, Any]) -> tuple[list[Text], str]:
    chosen, rejected = row["chosen"], row["rejected"]
    facts = f"strength {row['strength']}, margin {row['margin']:g}, weight {row['weight']:g}, p {row['p']:g}"
    if row["strength"] == 0:
        return [_text(chosen, "Chosen (a tie)"), _text(rejected, "Rejected (a tie)")], facts
    return [_text(chosen, "Chosen", "good"), _text(rejected, "Rejected", "bad")], facts


def _ranking(row: dict[str, Any]) -> tuple[list[Text], str]:
    ranked = zip(row["completions"], row["ranks"], strict=True)
    return [_text(said, f"Rank {rank}") for said, rank in ranked], f"weight {row['weight']:g}"


def _rating(row: dict[str, Any]) -> tuple[list[Text], str]:
    said = _text(row["completion"], f"{row['criterion']}: {row['rating']}")
    return [said], f"rater {row['rater']}, weight {row['weight']:g}"


def _single(row: dict[str, Any]) -> tuple[list[Text], str]:
    good = row["label"]
    return [_text(row["completion"], "Good" if good else "Bad", "good" if good else "bad")], ""


def _demonstration(row: dict[str, Any]) -> tuple[list[Text], str]:
    return [_text(row["completion"], "Completion")], ""


def _plain(row: dict[str, Any]) -> tuple[list[Text], str]:
    return [_text([Message(role="", content=row["text"])], "Text")], ""


def _nothing(row: dict[str, Any]) -> tuple[list[Text], str]:
    return [], ""


def _text(turns: list[Message], caption: str, tone: str = "") -> Text:
    whole = "\n\n".join(turn["content"] for turn in turns)
    shown = whole if len(whole) <= SHOWN else f"{whole[:SHOWN]} …"
    return Text(caption, render_markdown(shown), tone)


_READERS = {
    "pairs": _pair,
    "rankings": _ranking,
    "ratings": _rating,
    "unpaired": _single,
    "demonstrations": _demonstration,
    "texts": _plain,
}
