"""`manage.py train_worker`: trains and samples what is queued, until it is told to stop."""

import contextlib
import signal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from training.launchers.local import LocalLauncher, default_device
from training.worker import TrainingWorker


class Command(BaseCommand):
    help = (
        "Run queued training and sampling on one device. Ctrl-C saves a checkpoint, puts the run back into "
        "the queue and ends; a second Ctrl-C ends at once."
    )
    requires_system_checks = []  # they would load every page of the site

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--batch", action="store_true", help="end when nothing is left to do")
        parser.add_argument(
            "--device", default="", help="cpu:0, cuda:0, ...; the first GPU when there is one"
        )
        parser.add_argument("--name", default="", help="what pages call this worker; host and device")

    def handle(self, *args: Any, batch: bool, device: str, name: str, **options: Any) -> None:
        launcher = LocalLauncher(device or default_device(), standby=settings.TRAINER_STANDBY)
        worker = TrainingWorker(launcher=launcher, name=name, say=self._say)

        def on_signal(number: int, frame: object) -> None:
            worker.ask_stop()

        signal.signal(signal.SIGINT, on_signal)
        signal.signal(signal.SIGTERM, on_signal)
        worker.serve(batch=batch)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk or a closed terminal is no reason to stop working
            self.stdout.write(line)
            self.stdout.flush()
