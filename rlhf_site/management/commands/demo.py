"""`make demo`: a running installation with a project to judge; with --headless the whole loop by itself."""

import json
import os
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from labeling.rounds import RoundPlan

INSIDE = "RATCHET_HEADLESS_INSIDE"


class Command(BaseCommand):
    help = "Start web server and training worker with a demo project; Ctrl-C stops both."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument(
            "--port", type=int, default=8000, help="the next free one is taken when it is in use"
        )
        parser.add_argument(
            "--headless", action="store_true", help="simulated raters, in a folder of its own"
        )
        parser.add_argument("--rounds", type=int, default=2)
        parser.add_argument("--labels", type=int, default=600, help="labels of a round, at most (headless)")
        parser.add_argument("--raters", type=int, default=4, help="simulated raters (headless)")
        parser.add_argument(
            "--noise", type=float, default=1.0, help="of the simulated raters: 0 is never wrong"
        )
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--json", action="store_true", help="figures as the last line (headless)")
        parser.add_argument("--keep", metavar="FOLDER", help="keep the headless installation in this folder")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["headless"]:
            return self._stay(options)
        if os.environ.get(INSIDE) != "1":
            return self._in_a_folder_of_its_own(options["keep"])
        return self._headless(options)

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def _stay(self, options: dict[str, Any]) -> None:
        from rlhf_site.demo.processes import RunsAlready, only_here

        try:
            with only_here(settings.VAR_DIR) as write_address:
                self._run(options, write_address)
        except RunsAlready as error:
            raise CommandError(str(error)) from error

    def _run(self, options: dict[str, Any], write_address: Callable[[str], None]) -> None:
        from rlhf_site.demo import cast
        from rlhf_site.demo.processes import ProcessDied

        self._say("preparing the database and the pages ...")
        cast.prepare_installation()
        plan = RoundPlan(
            source="sample", train_prompts=300, test_prompts=30, test_overlap=2, seed=options["seed"]
        )
        made = cast.make_cast(plan=plan, seed=options["seed"])
        processes = self._processes(options)
        _listen_for_stop()
        try:
            self._say("starting the web server and the training worker ...")
            write_address(processes.address)
            processes.start()
            self._greet(processes.address, made)
            self._follow(processes)
        except ProcessDied as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            self._say("\nstopping (a run under way saves a checkpoint first) ...")
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            processes.stop()
        self._say("stopped. `make demo` goes on with what is there.")

    def _processes(self, options: dict[str, Any]) -> Any:
        from rlhf_site.demo.processes import Processes

        return Processes(
            host=options["host"], port=options["port"], log_dir=settings.VAR_DIR / "log", say=self._say
        )

    def _greet(self, address: str, made: Any) -> None:
        if made.passwords:
            self._say("\nThree people, and their passwords (shown this once):")
            for name, password in made.passwords.items():
                role = "manager" if name == "mia" else "rater"
                self._say(f"  {name:<4} {role:<8} {password}")
        else:
            self._say("\nForgotten a password? .venv/bin/python manage.py changepassword ann")
        self._say(f"\nRatchet is at {address}   (Ctrl-C stops it)\n")

    def _follow(self, processes: Any) -> None:
        """Say what happens until somebody stops us."""
        from rlhf_site.demo.news import News

        news = News()
        while True:
            processes.check()
            for line in news.since_last_time():
                self._say(f"  {line}")
            time.sleep(1)

    def _in_a_folder_of_its_own(self, keep: str | None) -> None:
        """Run again as a child on a fresh installation, so that the demo's own data stay as they are."""
        import subprocess

        with tempfile.TemporaryDirectory(prefix="ratchet-headless-") as folder:
            environment = {**os.environ, "RATCHET_VAR": os.path.abspath(keep or folder), INSIDE: "1"}
            child = subprocess.Popen([sys.executable, *sys.argv], env=environment)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child gets it too, and stops its own
            signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            status = child.wait()
        sys.exit(status)

    def _headless(self, options: dict[str, Any]) -> None:
        from rlhf_site.demo import cast, headless, simulated_raters
        from rlhf_site.demo.processes import ProcessDied

        started = time.monotonic()
        self._say("preparing the database and the pages ...")
        cast.prepare_installation()
        processes = self._processes(options)
        _listen_for_stop()
        try:
            processes.start()
            self._say(f"web server at {processes.address}, worker started")
            figures = headless.run_loop(
                processes=processes,
                plan=_plan(options["labels"], options["seed"]),
                turns=options["rounds"],
                seed=options["seed"],
                raters=options["raters"],
                noise=options["noise"],
                say=self._say,
                started=started,
            )
        except (headless.StepFailed, simulated_raters.JudgingFailed, ProcessDied) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError("interrupted") from None
        finally:
            processes.stop()
        if options["json"]:
            self._say(json.dumps(figures))
        if not headless.books_balance(figures):
            raise CommandError("labels acknowledged, stored and exported differ")


def _plan(labels: int, seed: int) -> RoundPlan:
    """At most `labels` labels: held-out prompts take a tenth of the tasks and are judged twice."""
    tasks = labels * 10 // 11
    test = tasks // 10
    return RoundPlan(
        source="sample",
        train_prompts=tasks - test,
        test_prompts=test,
        test_overlap=2,
        seed=seed,
        gate_prompts=0,
    )


def _listen_for_stop() -> None:
    # Said for SIGINT too: a shell script's `make demo &` starts us with Ctrl-C switched off.
    signal.signal(signal.SIGINT, _as_interrupt)
    signal.signal(signal.SIGTERM, _as_interrupt)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
