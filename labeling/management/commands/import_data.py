"""`manage.py import_data FILE --project NAME`: prompts, preference pairs, rankings from a file."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from labeling.imports import Form, ImportReport, Progress, UnreadableFile, import_file
from labeling.models import Project
from labeling.projects import create_project

LISTED = 20


class Command(BaseCommand):
    help = (
        "Import a file into a project. The form is recognised: prompts (TXT, CSV, JSONL), preference "
        "pairs in TRL's forms (JSONL, CSV), rankings (JSONL), Open-Assistant trees. Importing a file "
        "twice changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--project", required=True, help="name or slug")
        parser.add_argument("--form", choices=[form.value for form in Form], help="default: recognise it")
        parser.add_argument(
            "--keep-good", action="store_true", help="store the good rows when others are refused"
        )
        parser.add_argument("--create", action="store_true", help="make the project when there is none")
        parser.add_argument("--json", action="store_true", help="print the report as one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project, is_new = _project(options["project"], create=options["create"])
        report = None
        try:
            report = import_file(
                project=project,
                path=options["file"],
                form=options["form"],
                keep_good=options["keep_good"],
                progress=self._tell,
            )
        except UnreadableFile as error:
            raise CommandError(f"{options['file']}: {error}") from error
        finally:
            self._end_line()
            if is_new and (report is None or not report.stored):
                project.delete()  # made for this file, which did not come in
        if options["json"]:
            self.stdout.write(json.dumps(report.to_json()))
        else:
            self._print(report)
        if not report.stored:
            self.stderr.write(self.style.ERROR(f"Nothing was stored. {_advice(report)}".strip()))
            sys.exit(1)

    def _tell(self, now: Progress) -> None:
        share = 100 * now.done // max(now.total, 1)
        # On a terminal one line that moves; in a log a line each time.
        start, end = ("\r", "") if self.stderr.isatty() else ("", "\n")
        self.stderr.write(f"{start}{now.phase} {share:3d} %", self.style.SUCCESS, ending=end)

    def _end_line(self) -> None:
        if self.stderr.isatty():
            self.stderr.write("")

    def _print(self, report: ImportReport) -> None:
        out = self.stdout.write
        out(f"{report.name}: {Form(report.form).described}, {report.rows:,} rows in {report.seconds:.1f} s")
        for what, tally in (
            ("prompts", report.prompts),
            ("completions", report.completions),
            ("comparisons", report.comparisons),
            ("rankings", report.rankings),
            ("examples", report.examples),
        ):
            if tally.created or tally.known:
                out(f"  {what}: {tally.created:,} new, {tally.known:,} known already")
        if report.repeated:
            out(f"  repeated in the file and counted once: {report.repeated:,}")
        for note, count in report.notes.items():
            if count:
                out(f"  {note}: {count:,}")
        if report.refused:
            out(f"  refused: {report.refused:,} of {report.rows:,} rows")
            for reason, count in report.refused_by_reason.most_common():
                out(f"    {reason}: {count:,}")
            for refusal in report.refusals[:LISTED]:
                out(f"    line {refusal.line}: {refusal.detail}")
            if report.refused > LISTED:
                out(f"    … and {report.refused - LISTED:,} more")


def _advice(report: ImportReport) -> str:
    if report.accepted:
        return "Correct the rows that were refused, or add --keep-good to take the others."
    return "Correct the rows that were refused." if report.refused else ""


def _project(name: str, *, create: bool) -> tuple[Project, bool]:
    """The project, and whether it was made just now."""
    project = Project.objects.filter(Q(name=name) | Q(slug=name)).order_by("pk").first()
    if project is not None:
        return project, False
    if not create:
        raise CommandError(f"There is no project {name!r}. Name one that is there, or add --create.")
    return create_project(name=name), True
