"""Lines to rows: TXT, CSV and JSONL. A row that cannot be read comes with the reason in its place."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from labeling.imports.items import RefusedRow, UnreadableFile, shown
from labeling.imports.lines import MAX_LINE_BYTES, Line


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: RefusedRow | None = None


def text_rows(lines: Iterator[Line]) -> Iterator[Row]:
    """One prompt a line, kept exactly but for the line end; blank lines are no rows.

    A carriage return alone ends a line too, as in files of old Macs: nobody writes one into a prompt.
    """
    earlier = 0  # lines that ended so
    for line in lines:
        if line.problem is not None:
            yield Row(line.number + earlier, problem=line.problem)
            continue
        prompts = line.text.removesuffix("\n").removesuffix("\r").split("\r")
        for number, prompt in enumerate(prompts, start=line.number + earlier):
            if prompt.strip():
                yield Row(number, {"prompt": prompt})
        earlier += len(prompts) - 1


def paragraph_rows(lines: Iterator[Line]) -> Iterator[Row]:
    """One text after the other, parted by blank lines; a row has the number of its first line."""
    start, parts, size, problem = 0, list[str](), 0, None
    for line in lines:
        if line.problem is None and not line.text.strip():
            if start:
                yield _paragraph(start, parts, size, problem)
            start, parts, size, problem = 0, [], 0, None
            continue
        start = start or line.number
        problem = problem or line.problem
        size += len(line.text)
        if size <= MAX_LINE_BYTES:  # beyond, it is refused and need not be held
            parts.append(line.text)
    if start:
        yield _paragraph(start, parts, size, problem)


def _paragraph(start: int, parts: list[str], size: int, problem: RefusedRow | None) -> Row:
    if problem is None and size > MAX_LINE_BYTES:
        problem = RefusedRow("text too long", f"the text has {size:,} characters; part it by blank lines")
    if problem is not None:
        return Row(start, problem=problem)
    return Row(start, {"text": "".join(parts).replace("\r\n", "\n").removesuffix("\n")})


def json_rows(lines: Iterator[Line]) -> Iterator[Row]:
    """One JSON object a line; blank lines are no rows."""
    for line in lines:
        if line.problem is not None:
            yield Row(line.number, problem=line.problem)
        elif line.text.strip():
            try:
                yield Row(line.number, parse_object(line.text.strip()))
            except RefusedRow as problem:
                yield Row(line.number, problem=problem)


def parse_object(text: str) -> dict[str, Any]:
    """Strict JSON: no key twice, no NaN. RefusedRow says what is wrong and where."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
    except RecursionError:
        raise RefusedRow("nested too deeply", "the object is nested too deeply") from None
    except json.JSONDecodeError as error:
        detail = f"{error.msg.lower().removesuffix(' at')} at column {error.colno}"
        raise RefusedRow("broken JSON", f"{detail}: {shown(text[max(error.pos - 20, 0) :])}") from None
    except ValueError:  # an integer of more digits than Python will read
        raise RefusedRow("broken JSON", "a number has too many digits") from None
    if not isinstance(value, dict):
        raise RefusedRow("not an object", f"the line is no JSON object: {shown(value)}")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RefusedRow("repeated key", f"the key {shown(key)} stands twice in one object")
            seen.add(key)
    return value


def _no_constant(name: str) -> NoReturn:
    raise RefusedRow("broken JSON", f"{name} is no JSON")


def csv_rows(lines: Iterator[Line], *, delimiters: tuple[str, ...], wanted: tuple[str, ...]) -> Iterator[Row]:
    """Cells by the names in the header, in small letters; an empty cell is absent.

    A line that cannot be decoded refuses the whole file: nobody knows where the record around it ends.
    """
    csv.field_size_limit(MAX_LINE_BYTES)  # for the process; the default refuses cells of 128 kB
    texts = _texts(lines)
    first = next(texts, "")
    for delimiter in delimiters:
        header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        if set(wanted) <= set(header):
            break
    else:
        raise UnreadableFile(f"its header has no column `{'`, `'.join(wanted)}`: {shown(first.strip())}")
    if len(set(header)) < len(header):
        raise UnreadableFile(f"its header names a column twice: {shown(first.strip())}")
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 2
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UnreadableFile(f"line {reader.line_num + 1}: broken CSV, {error}") from error
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            detail = f"{len(cells)} cells under {len(header)} columns; put text with commas in quotes"
            yield Row(line, problem=RefusedRow("too many cells", detail))
            continue
        yield Row(line, {name: cell for name, cell in zip(header, cells, strict=False) if cell != ""})


def _texts(lines: Iterator[Line]) -> Iterator[str]:
    for line in lines:
        if line.problem is not None:
            raise UnreadableFile(f"line {line.number}: {line.problem.detail}")
        yield line.text
