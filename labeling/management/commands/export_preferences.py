"""Write a preference dataset into a folder: one that is frozen already, or one frozen for it.

manage.py export_preferences --dataset "Round 1" --project Stories --output exported/
manage.py export_preferences --project Stories --rounds 1 2 --rule majority --output exported/
manage.py export_preferences --project Stories --files shown.jsonl --output exported/
"""

import json
import os
import re
import shutil
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labeling.datasets import DamagedDataset, FreezeError, folder_of, freeze, verify
from labeling.models import Collection, PreferenceDataset, Project, Round


class Command(BaseCommand):
    help = (
        "Write a preference dataset (JSONL, Parquet, a folder for datasets.load_from_disk) into a new folder."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dataset", help="name of a frozen dataset, or of the one that is frozen now")
        parser.add_argument("--project", help="name or slug of the project")
        parser.add_argument(
            "--rounds",
            nargs="+",
            type=int,
            metavar="N",
            help="freeze these rounds (default: every closed one)",
        )
        parser.add_argument(
            "--files", nargs="+", metavar="NAME", help="freeze the examples that these files brought in, too"
        )
        parser.add_argument(
            "--rule", choices=PreferenceDataset.Rule.values, help="freeze by this rule (default: majority)"
        )
        parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="must not exist yet")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    def handle(self, *args: Any, **options: Any) -> None:
        output: Path = options["output"]
        try:
            if output.exists() or output.is_symlink():
                raise CommandError(f"{output} exists: name a folder that does not.")
            dataset = _wanted(options)
            verify(folder_of(dataset), digest=dataset.digest)
            _copy(folder_of(dataset), output)
        except (FreezeError, DamagedDataset) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{output} could not be written: {_reason(error)}") from error
        self._report(dataset, output, as_json=options["json"])

    def _report(self, dataset: PreferenceDataset, output: Path, *, as_json: bool) -> None:
        manifest = dataset.manifest
        if as_json:
            found = {
                "dataset": dataset.name,
                "project": dataset.project.name,
                "rule": dataset.rule,
                "digest": dataset.digest,
                "labels": manifest["labels"],
                "tables": manifest["tables"],
                "output": str(output),
            }
            self.stdout.write(json.dumps(found, ensure_ascii=False))
            return
        labels = manifest["labels"]
        self.stdout.write(f"{dataset.project}: {dataset.name} ({dataset.get_rule_display()})")
        self.stdout.write(f"labels: {labels['read']} read, {labels['used']} used")
        for reason, count in labels["left_out"].items():
            self.stdout.write(f"  left out: {count} {reason}")
        for table, splits in manifest["tables"].items():
            self.stdout.write(f"{table}: " + ", ".join(f"{rows} {split}" for split, rows in splits.items()))
        self.stdout.write(f"sha256 of manifest.json: {dataset.digest}")
        self.stdout.write(f"written to {output}")


def _reason(error: OSError) -> str:
    """Copying a folder gathers what happened to every file of it; the first says enough."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        return re.sub(r"^\[Errno \d+\] ", "", str(error.args[0][0][-1]))
    return error.strerror or str(error)


def _wanted(options: dict[str, Any]) -> PreferenceDataset:
    """The dataset that is named; frozen now when rounds or a rule are given, or no name is."""
    project = _project(options["project"]) if options["project"] else None
    name = options["dataset"]
    if name and not (options["rounds"] or options["rule"] or options["files"]):
        return _frozen(name, project)
    if project is None:
        raise CommandError("Name the project with --project, or a frozen dataset with --dataset.")
    files = _collections(project, options["files"] or [])
    rounds = [] if files and not options["rounds"] else _rounds(project, options["rounds"])
    rule = options["rule"] or PreferenceDataset.Rule.MAJORITY
    name = name or _free_name(project, rounds, files)
    return freeze(project=project, rounds=rounds, collections=files, rule=rule, name=name)


def _collections(project: Project, names: list[str]) -> list[Collection]:
    """What the newest import of each file brought in."""
    found = {one.name: one for one in project.collections.order_by("pk")}
    missing = [name for name in names if name not in found]
    if missing:
        raise CommandError(f"No file {', '.join(missing)} brought examples into {project}.")
    return [found[name] for name in dict.fromkeys(names)]


def _project(name: str) -> Project:
    project = Project.objects.filter(name=name).first() or Project.objects.filter(slug=name).first()
    if project is None:
        known = ", ".join(Project.objects.values_list("name", flat=True)) or "none"
        raise CommandError(f"There is no project {name!r}. Known: {known}.")
    return project


def _frozen(name: str, project: Project | None) -> PreferenceDataset:
    found = PreferenceDataset.objects.filter(name=name).select_related("project")
    if project is not None:
        found = found.filter(project=project)
    datasets = list(found[:2])
    if len(datasets) > 1:
        raise CommandError(f"Several projects have a dataset {name!r}: name one with --project.")
    if not datasets:
        raise CommandError(f"There is no dataset {name!r}{f' in {project}' if project else ''}.")
    return datasets[0]


def _rounds(project: Project, numbers: list[int] | None) -> list[Round]:
    if not numbers:
        return list(Round.objects.filter(project=project, state=Round.State.CLOSED))
    rounds = {round.number: round for round in Round.objects.filter(project=project, number__in=numbers)}
    missing = [str(number) for number in numbers if number not in rounds]
    if missing:
        raise CommandError(f"{project} has no round {', '.join(missing)}.")
    return list(rounds.values())


def _free_name(project: Project, rounds: list[Round], files: list[Collection]) -> str:
    """ "Rounds 1, 2", or "Rounds 1, 2 (2)" when that is taken."""
    numbers = ", ".join(str(round.number) for round in rounds)
    base = f"Round{'s' if len(rounds) > 1 else ''} {numbers}"[:100] if rounds or not files else str(files[0])
    taken = set(PreferenceDataset.objects.filter(project=project).values_list("name", flat=True))
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base} ({count})"
    return name


def _copy(source: Path, output: Path) -> None:
    """Copy beside the output and rename, so that a folder by that name is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        shutil.copytree(source, draft)
        os.rename(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
