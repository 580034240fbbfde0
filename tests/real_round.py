"""Rounds and people in a database of its own, for a real server that tests and benchmarks talk to.

    python -m tests.real_round --raters 32 300x3 40x1

makes a round of 300 tasks with three labels each and one of 40 with one, the raters rater0, rater1 ... and
the manager mia, and prints the numbers of the rounds as JSON.
"""

import argparse
import json
import os
import subprocess
import sys

from tests.real_server import ROOT

PASSWORD = "correct horse battery"


def make_rounds(env: dict[str, str], *sizes: tuple[int, int], raters: int) -> list[int]:
    """Make rounds of (tasks, overlap) in the database of `env`; their numbers in the same order."""
    command = [sys.executable, "-m", "tests.real_round", "--raters", str(raters)]
    command += [f"{tasks}x{overlap}" for tasks, overlap in sizes]
    made = subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=300, stdout=subprocess.PIPE)
    rounds: list[int] = json.loads(made.stdout)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="+", help="TASKSxOVERLAP")
    parser.add_argument("--raters", type=int, required=True)
    options = parser.parse_args()

    import django

    django.setup()
    from django.contrib.auth.hashers import make_password
    from django.contrib.auth.models import User

    from labeling.models import Membership
    from tests.factories import make_project
    from tests.labeling.open_round import make_open_round

    project, password = make_project(), make_password(PASSWORD)  # one slow hash for everybody
    for name in ("mia", *(f"rater{n}" for n in range(options.raters))):
        user = User.objects.create(username=name, password=password)
        role = Membership.Role.MANAGER if name == "mia" else Membership.Role.RATER
        Membership.objects.create(project=project, user=user, role=role)
    sizes = [size.split("x") for size in options.sizes]
    rounds = [make_open_round(project, tasks=int(tasks), overlap=int(overlap)) for tasks, overlap in sizes]
    json.dump([round.pk for round in rounds], sys.stdout)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rlhf_site.settings")
    main()
