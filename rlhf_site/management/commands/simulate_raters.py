"""Let simulated raters of the starter's world judge an open round through the pages of a running server."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labeling.models import Project, Round
from rlhf_site.demo import simulated_raters


class Command(BaseCommand):
    help = "Judge the open round of a project by the hidden preference of the starter's world, with noise."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--project", required=True, help="its name")
        parser.add_argument("--address", default="http://127.0.0.1:8000", help="of the running web server")
        parser.add_argument("--raters", type=int, default=3)
        parser.add_argument("--labels", type=int, help="of each rater, at most")
        parser.add_argument("--noise", type=float, default=1.0)
        parser.add_argument("--seed", type=int, default=0)

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(name=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project named {options['project']!r}.")
        current = project.rounds.filter(state=Round.State.OPEN).last()
        if current is None:
            raise CommandError(f"No round of {project} is open.")
        people = simulated_raters.hire(
            project, options["raters"], seed=options["seed"], noise=options["noise"]
        )
        try:
            labels = simulated_raters.judge(options["address"], current, people, limit=options["labels"])
        except simulated_raters.JudgingFailed as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{labels} labels given to {current} of {project}")
