"""How long raters wait while a large file comes in, on the real server.

    python -m tests.benchmarks.imports --store sqlite|postgres --pairs 50000 --raters 8

Raters judge in a closed loop from before the import until after it, with half a second of thinking. Prints
as its last line one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.labels import STORES, Measured, _database, _percentile, build, say
from tests.http_rater import HttpRater
from tests.real_server import ROOT, environment, prepare, real_server

THINKING = 0.5  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description="Labels while a large file comes in.")
    parser.add_argument("--store", choices=STORES, required=True)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--raters", type=int, default=8)
    options = parser.parse_args()
    with ExitStack() as stack:
        var = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-benchmark-")))
        env = environment(database=stack.enter_context(_database(options.store, var)), var=var)
        prepare(env)
        os.environ.update(env)
        round_id, cookies = build(raters=options.raters, tasks=5_000)
        file = _pairs(var / "pairs.jsonl", options.pairs)
        with real_server(env, processes=2) as server:
            over = threading.Event()
            measured = [Measured() for _ in cookies]
            raters = [
                threading.Thread(target=_judge, args=(server.port, round_id, own, over, into))
                for own, into in zip(cookies, measured, strict=True)
            ]
            for rater in raters:
                rater.start()
            say(f"{len(raters)} raters judge; {options.pairs} pairs come in")
            began = time.perf_counter()
            command = [
                sys.executable,
                "manage.py",
                "import_data",
                str(file),
                "--project",
                "Files",
                "--create",
            ]
            status = subprocess.run([*command, "--json"], cwd=ROOT, env=env, capture_output=True).returncode
            seconds = time.perf_counter() - began
            over.set()
            for rater in raters:
                rater.join(120)
    cycles = sorted(cycle for one in measured for cycle in one.cycles)
    errors = [error for one in measured for error in one.errors]
    for error in errors[:5]:
        say(f"error: {error}")
    figures = {
        "store": options.store,
        "pairs": options.pairs,
        "import_seconds": round(seconds, 1),
        "labels": len(cycles),
        "errors": len(errors),
        **{f"p{p}_ms": round(1000 * _percentile(cycles, p), 1) for p in (50, 95, 99)},
        "longest_ms": round(1000 * cycles[-1], 1) if cycles else 0.0,
    }
    print(json.dumps(figures))
    return 1 if status or errors else 0


def _judge(port: int, round_id: int, cookies: dict[str, str], over: threading.Event, into: Measured) -> None:
    with HttpRater(port, cookies) as rater:
        try:
            shown = rater.judge(round_id)
            while shown is not None and not over.wait(THINKING):
                began = time.perf_counter()
                shown = rater.save(shown, "tie")
                into.cycles.append(time.perf_counter() - began)
        except Exception as error:  # whatever it is, it is the benchmark's finding
            into.errors.append(repr(error))


def _pairs(path: Path, number: int) -> Path:
    story = "The fox lit the lantern and walked in front, and they shared a warm bun at the old mill. " * 4
    with open(path, "w") as file:
        for n in range(number):
            row = {"prompt": f"Tell me story {n}.", "chosen": f"{story}{n}", "rejected": f"{n}{story}"}
            file.write(json.dumps(row) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
