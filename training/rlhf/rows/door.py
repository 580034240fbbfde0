"""The door of a table: lines of JSONL as checked values. Raises Refused, with file and line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from training.rlhf.failures import Refused

Message = dict[str, str]


class Place(NamedTuple):
    path: Path
    line: int

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise Refused(
                what, f"{self.path.name}, line {self.line}", "Correct the row, or freeze the dataset again."
            )


def rows_in(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            place = Place(path, line)
            try:
                row = json.loads(raw)
            except ValueError as error:  # UnicodeDecodeError is one too
                place.check(False, f"This is not JSON: {error}.")
            place.check(isinstance(row, dict), "Expected an object with the row's columns.")
            yield line, row


def messages_of(row: dict[str, Any], column: str, place: Place) -> list[Message]:
    place.check(column in row, f"The column {column} is missing.")
    return turns_of(row[column], column, place)


def turns_of(turns: Any, column: str, place: Place) -> list[Message]:
    place.check(isinstance(turns, list) and bool(turns), f"{column}: a list of messages, at least one.")
    for turn in turns:
        whole = (
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
        )
        place.check(whole, f"{column}: each message has a role and a content, both text.")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def number_of(row: dict[str, Any], column: str, place: Place, *, default: float) -> float:
    value = row.get(column, default)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    place.check(fits, f"{column} is {value!r}: a number.")
    return float(value)


def weight_of(row: dict[str, Any], place: Place) -> float:
    weight = number_of(row, "weight", place, default=1.0)
    place.check(weight > 0, f"weight is {weight}: above 0.")
    return weight
