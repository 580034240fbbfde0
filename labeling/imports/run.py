"""Import one file: recognise its form, read and check every row, store all of it out of sight, then show it.

Nothing is stored when a row is refused, unless the caller keeps the good ones. A file that comes in again
finds everything known and changes nothing.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from django.db import transaction

from labeling.imports.examples import read_demonstration, read_single_judgement, read_text
from labeling.imports.items import Item, RefusedRow, UnreadableFile
from labeling.imports.lines import lines_of, open_as_utf8
from labeling.imports.open_assistant import read_tree
from labeling.imports.recognise import DELIMITERS, Form, recognise
from labeling.imports.report import ImportReport, Progress
from labeling.imports.rows import Row, csv_rows, json_rows, paragraph_rows, text_rows
from labeling.imports.spool import Spool
from labeling.imports.staging import staged
from labeling.imports.store import Store
from labeling.imports.trl import read_pair, read_prompt, read_ranking
from labeling.models import Project

TELL_EVERY = 0.5  # seconds between two calls of `progress`


def import_file(
    *,
    project: Project,
    path: Path,
    name: str | None = None,
    form: str | None = None,
    keep_good: bool = False,
    progress: Callable[[Progress], None] | None = None,
    before_storing: Callable[[], object] = lambda: None,
    on_stored: Callable[[ImportReport], object] = lambda report: None,
) -> ImportReport:
    """Read a file into the project; the report says what came of it, `stored` whether anything was written.

    `name` is what the user calls the file. `before_storing` runs right before the first transaction that
    stores, `on_stored` as the last thing in the one that shows everything. Raises UnreadableFile when there
    is nothing to read rows from. Memory does not grow with the file's texts. Storing takes about 10 s for
    10,000 pairs on SQLite, half of it in pauses, so that labels are saved meanwhile.
    """
    start = time.monotonic()
    report = ImportReport(name=clean_name(name or path.name))
    tell = _occasionally(progress)
    with open_as_utf8(path) as stream, Spool() as spool:
        beginning = stream.tell()
        chosen = _form(form) if form else recognise(stream, name=report.name)
        stream.seek(beginning)
        report.form = chosen.value
        for item in _read(stream, chosen, report, tell):
            # Once it is certain that nothing will be stored, the rest is only checked.
            if keep_good or not report.refused:
                spool.add(item)
        if report.rows == 0:
            raise UnreadableFile("it has no rows: every line is blank, or a header alone")
        if report.accepted and (keep_good or not report.refused):
            before_storing()
            with staged(project) as hidden:
                store = Store(project=project, hidden=hidden, report=report)
                store.store(spool, tell)
                with transaction.atomic():
                    store.publish()
                    report.stored = True
                    report.seconds = round(time.monotonic() - start, 3)
                    on_stored(report)
    report.seconds = round(time.monotonic() - start, 3)
    return report


def clean_name(name: str) -> str:
    """The name of a file as it may stand in a page and in the name of a policy."""
    printable = "".join(c for c in name if c.isprintable())
    return " ".join(printable.split())[-100:] or "file"


def _form(name: str) -> Form:
    try:
        return Form(name)
    except ValueError:
        raise UnreadableFile(f"there is no form {name!r}; known are {', '.join(Form)}") from None


def _read(
    stream: IO[bytes], form: Form, report: ImportReport, tell: Callable[[Progress], None]
) -> Iterator[Item]:
    position = stream.tell()
    total = stream.seek(0, 2)
    stream.seek(position)
    for row in _rows(stream, form):
        report.rows += 1
        tell(Progress(phase="reading", done=stream.tell(), total=total))
        try:
            if row.problem is not None:
                raise row.problem
            items = _items(row, form, report)
        except RefusedRow as problem:
            report.refuse(row.line, problem)
        else:
            report.accepted += 1
            yield from (replace(item, line=row.line) for item in items)


def _rows(stream: IO[bytes], form: Form) -> Iterator[Row]:
    lines = lines_of(stream)
    match form:
        case Form.PROMPTS_TXT:
            return text_rows(lines)
        case Form.PROMPTS_CSV:
            return csv_rows(lines, delimiters=DELIMITERS, wanted=("prompt",))
        case Form.PAIRS_CSV:
            return csv_rows(lines, delimiters=DELIMITERS, wanted=("chosen", "rejected"))
        case Form.DEMONSTRATIONS_CSV:
            return csv_rows(lines, delimiters=DELIMITERS, wanted=("prompt", "completion"))
        case Form.UNPAIRED_CSV:
            return csv_rows(lines, delimiters=DELIMITERS, wanted=("prompt", "completion", "label"))
        case Form.TEXTS_CSV:
            return csv_rows(lines, delimiters=DELIMITERS, wanted=("text",))
        case Form.TEXTS_TXT:
            return paragraph_rows(lines)
        case _:
            return json_rows(lines)


def _items(row: Row, form: Form, report: ImportReport) -> list[Item]:
    match form:
        case Form.PROMPTS_TXT | Form.PROMPTS_CSV | Form.PROMPTS_JSONL:
            return [read_prompt(row.values)]
        case Form.PAIRS_JSONL | Form.PAIRS_CSV:
            return [read_pair(row.values)]
        case Form.RANKINGS_JSONL:
            return [read_ranking(row.values)]
        case Form.DEMONSTRATIONS_JSONL | Form.DEMONSTRATIONS_CSV:
            return [read_demonstration(row.values)]
        case Form.UNPAIRED_JSONL | Form.UNPAIRED_CSV:
            return [read_single_judgement(row.values, words=form == Form.UNPAIRED_CSV)]
        case Form.TEXTS_JSONL | Form.TEXTS_CSV | Form.TEXTS_TXT:
            return [read_text(row.values)]
        case Form.OPEN_ASSISTANT:
            return read_tree(row.values, report.notes)


def _occasionally(progress: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Call `progress` at the start of each phase and then at most every half second."""
    phase, due = "", 0.0

    def tell(now: Progress) -> None:
        nonlocal phase, due
        if progress is not None and (now.phase != phase or time.monotonic() >= due):
            phase, due = now.phase, time.monotonic() + TELL_EVERY
            progress(now)

    return tell
