"""A child that has imported everything before there is work: `python -m training.rlhf --standby`.

It reads jobs from its standard input, one JSON object a line, does any number of preflights and at most one
run, and ends. Importing torch and its friends takes longer than many a preflight; a worker that keeps one
such child ready (training.launchers.standby) starts a run at once. What follows a job is what
`python -m training.rlhf RUN_DIR` does, in a process that no run has used.
"""

import contextlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable

from training.rlhf.run_dir import Job


def serve(work: Callable[[list[str]], int]) -> int:
    """Do jobs until one was a run, or nobody can send another; the exit status of the last.

    Each preflight's status is a line on the standard output that this process was started with.
    """
    answers = os.dup(1)
    politely = threading.Thread(target=_import_politely)
    politely.start()
    politely.join()
    import_all()  # says what is wrong, if anything was
    for line in sys.stdin:
        job: Job = json.loads(line)
        _print_to(job["stdout"], job["stderr"])
        code = work([job["folder"], *(["--preflight"] if job["preflight"] else [])])
        sys.stdout.flush()
        sys.stderr.flush()
        if not job["preflight"]:
            return code
        _print_to(os.devnull, os.devnull)
        os.write(answers, f"{code}\n".encode())
    return 0


def import_all() -> None:
    """What any method may need. Nothing is computed, and no device touched."""
    for name in ("evaluation", "preflight", "recipe", "sampling"):
        importlib.import_module(f"training.rlhf.{name}")
    transformers = importlib.import_module("transformers")
    for name in ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer"):
        getattr(transformers, name)  # imported when it is asked for


def _import_politely() -> None:
    """In a thread of low priority: as a rule another run is at work on this machine."""
    with contextlib.suppress(Exception):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)  # on Linux this means the thread
        import_all()


def _print_to(stdout: str, stderr: str) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, number)
        os.close(file)
