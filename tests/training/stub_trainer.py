"""A trainer without training: keeps the contract of `python -m training.rlhf`, or breaks it in one known way.

    python stub_trainer.py BEHAVIOUR RUN_DIR [--preflight]

Steps take 0.1 s, a checkpoint is saved every 5. What it does is written to RUN_DIR/journal.jsonl.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.rlhf.run_dir import (
    EXIT_CANCELLED,
    EXIT_LOCKED,
    EXIT_REFUSED,
    ProgressWriter,
    RunDir,
    RunLocked,
    write_json,
)

STEPS = 20
STEP_SECONDS = 0.1
SAVE_EVERY = 5


def main() -> int:
    behaviour, folder = sys.argv[1], RunDir(sys.argv[2])
    parent = os.environ["RATCHET_PARENT_PID"]
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(parent):
        return EXIT_CANCELLED
    try:
        with folder.locked():
            journal(folder, "start", environment=sorted(os.environ))
            if "--preflight" in sys.argv:
                return preflight(behaviour, folder)
            return work(behaviour, folder)
    except RunLocked:
        return EXIT_LOCKED


def preflight(behaviour: str, folder: RunDir) -> int:
    if behaviour == "slow check":
        time.sleep(60)
    if behaviour == "check dies":
        os.kill(os.getpid(), signal.SIGKILL)
    errors = []
    if behaviour == "check refuses":
        errors = [{"what": "Every row is too long.", "where": "pairs.train.jsonl", "do": "Raise max_length."}]
    write_json(folder.preflight, {"ok": not errors, "errors": errors, "warnings": [], "rows": {}})
    return 0


def work(behaviour: str, folder: RunDir) -> int:
    stop = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    misbehave(behaviour, folder)
    progress = ProgressWriter(folder)
    checkpoint = folder.last_checkpoint()
    first = int(checkpoint.name.rpartition("-")[2]) + 1 if checkpoint else 1
    progress.total_steps = STEPS
    progress.write("Loading")
    for step in range(first, STEPS + 1):
        time.sleep(1 if behaviour == "is slow" and step <= 8 else STEP_SECONDS)
        progress.step = step
        progress.write(values={"loss": 1 / step})
        journal(folder, "step", step=step)
        if stop and behaviour != "ignores SIGTERM":
            save(folder, step)
            return EXIT_CANCELLED
        if step % SAVE_EVERY == 0 and behaviour != "never saves":
            save(folder, step)
        if behaviour in ("dies at step 7", "never saves") and step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "dies once" and step == 7 and starts(folder) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "waits once at step 7" and step == 7 and starts(folder) == 1:
            time.sleep(60)  # for whoever kills it: on a busy machine it would have gone on meanwhile
        if behaviour == "garbage progress":
            garbage(folder, step)
    if behaviour == "torn line":
        with open(folder.progress, "a") as file:
            file.write('{"seq": 99, "time": 1.0, "st')
    finish(folder)
    if behaviour != "no result":
        write_json(folder.result, {"format": 1})
    return 0


def misbehave(behaviour: str, folder: RunDir) -> None:
    if behaviour == "crashes":
        print("Traceback: something broke\0 here \udcff".encode("utf-8", "surrogateescape"), file=sys.stderr)
        sys.exit(1)
    if behaviour == "refuses":
        write_json(folder.error, {"what": "No row is left.", "where": "data/", "do": "Raise max_length."})
        sys.exit(EXIT_REFUSED)
    if behaviour == "explains":
        write_json(folder.error, {"what": "The disk is full.", "where": "checkpoints/", "do": "Free space."})
        sys.exit(1)
    if behaviour == "fills stderr":
        for _ in range(400):
            sys.stderr.write("x" * 100_000 + "\n")
    if behaviour == "leaves a grandchild":
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        journal(folder, "grandchild", grandchild=pid)


def garbage(folder: RunDir, step: int) -> None:
    lines = [
        "\xff\xfe not json",
        "[]",
        '{"seq": "many"}',
        json.dumps({"seq": 10**12, "time": 0, "step": 0, "total_steps": 0, "message": "", "values": {}}),
        json.dumps(
            {"seq": 1, "time": 0, "step": step, "total_steps": 0, "message": "", "values": {"loss": 9}}
        ),
    ]
    with open(folder.progress, "a", encoding="latin-1") as file:
        file.write("\n".join(lines) + "\n")


def save(folder: RunDir, step: int) -> None:
    checkpoint = folder.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_json(checkpoint / "complete.json", {"step": step})
    journal(folder, "save", step=step)


def finish(folder: RunDir) -> None:
    config = json.loads(folder.config.read_text())
    if config["method"] == "sample":
        requests = [json.loads(line) for line in (folder.data / "requests.jsonl").read_text().splitlines()]
        with open(folder.completions, "w") as file:
            for number, request in enumerate(requests):
                for place, policy in enumerate(request["policies"]):
                    text = f"story {number}.{place} by {policy}"
                    line = {"request": number, "policy": policy, "text": text, "finish": "eos", "tokens": 5}
                    file.write(json.dumps(line) + "\n")
        return
    folder.model.mkdir(exist_ok=True)
    (folder.model / "model.safetensors").write_bytes(b"weights")
    write_json(folder.model / "lineage.json", {"seed": config["seed"]})
    write_json(folder.evaluation, {"accuracy": 0.75})


def starts(folder: RunDir) -> int:
    lines = (folder.path / "journal.jsonl").read_text().splitlines()
    return sum(json.loads(line)["event"] == "start" for line in lines)


def journal(folder: RunDir, event: str, **values: object) -> None:
    line = json.dumps({"event": event, "pid": os.getpid(), "time": time.time(), **values})
    with open(folder.path / "journal.jsonl", "a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
