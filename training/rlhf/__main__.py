"""The GPU side: `python -m training.rlhf RUN_DIR [--preflight]`. One process does one run, and then ends.

Read it from top to bottom: hold the folder, hear signals, read the recipe, train from the last checkpoint
or the start, save the model, evaluate it, and write `result.json` last. Whatever goes wrong becomes
`error.json`. Nothing heavy is imported before the folder is held: a second process leaves at once.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.rlhf import checkpoints, failures, held_out_figures, leftovers, standby
from training.rlhf.checks import cost
from training.rlhf.config import FORMAT, RunConfig
from training.rlhf.failures import Refused
from training.rlhf.methods import METHODS
from training.rlhf.progress import Cancelled, listen_for_stop, raise_if_stopped
from training.rlhf.run_dir import (
    EXIT_CANCELLED,
    EXIT_COMPLETE,
    EXIT_LOCKED,
    EXIT_REFUSED,
    ProgressWriter,
    RunDir,
    RunLocked,
    write_json,
)

ENVIRONMENT = {
    # Threads that wait for each other sleep. By default they spin, and on a machine that has other things
    # to do a training of 20 seconds then takes minutes.
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL reports each run otherwise
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.rlhf", description=__doc__)
    parser.add_argument("run_dir", type=Path, nargs="?", help="a folder with config.json and data/")
    parser.add_argument("--preflight", action="store_true", help="only check, and write preflight.json")
    parser.add_argument(
        "--standby", action="store_true", help="import everything, and read folders from stdin"
    )
    options = parser.parse_args(arguments)
    if options.run_dir is None and not options.standby:
        parser.error("which folder?")
    if options.run_dir is not None and not options.run_dir.is_dir():
        parser.error(f"{options.run_dir} is not a folder")
    die_with_parent()
    listen_for_stop()
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    see_one_device()
    if options.standby:
        without_bitsandbytes()
        return standby.serve(main)
    run_dir = RunDir(options.run_dir.resolve())
    if options.preflight or not quantises(run_dir):
        without_bitsandbytes()
    elif sys.modules.get("bitsandbytes", sys) is None:  # this process stood by, without it: begin afresh
        command = [sys.executable, "-m", "training.rlhf", str(run_dir.path)]
        os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted
    try:
        with run_dir.locked():
            return work(run_dir, only_preflight=options.preflight)
    except RunLocked as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_LOCKED


def die_with_parent() -> None:
    """End when the worker that started us ends, however it ends (Linux; elsewhere the lease must do)."""
    parent = os.environ.get("RATCHET_PARENT_PID")
    if not parent:
        return
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if str(os.getppid()) != parent:  # it died before we asked
        os._exit(EXIT_CANCELLED)


def see_one_device() -> None:
    """A run is for one GPU, the first that may be seen: with two, torch's trainer would split each batch.

    A worker's launcher names one already; this is for runs started by hand, and must come before torch.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]


def without_bitsandbytes() -> None:
    """PEFT imports it wherever it is installed, which takes two seconds, and QLoRA alone needs it."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def quantises(run_dir: RunDir) -> bool:
    """Will this run load its base in 4 bits? A recipe that cannot be read is refused later, in words."""
    try:
        return RunConfig.load(run_dir.config).tuning.kind == "qlora"
    except (OSError, ValueError):
        return False


def work(run_dir: RunDir, *, only_preflight: bool) -> int:
    run_dir.error.unlink(missing_ok=True)
    try:
        config = load_config(run_dir)
        if only_preflight:
            return check(run_dir, config)
        if not run_dir.is_complete:
            carry_out(run_dir, config)
        return EXIT_COMPLETE
    except Cancelled:
        return EXIT_CANCELLED
    except Exception as error:
        traceback.print_exc()
        explained, code = failures.explain(error, run_dir=run_dir)
        with contextlib.suppress(OSError):  # a full disk may not even take this
            write_json(run_dir.error, explained)
        return code


def load_config(run_dir: RunDir) -> RunConfig:
    try:
        return RunConfig.load(run_dir.config)
    except FileNotFoundError:
        raise Refused("There is no recipe.", str(run_dir.config), "Write config.json there.") from None


def settled(config: RunConfig) -> RunConfig:
    """The recipe with the rest decided: a judge to stop by, and bf16 where a GPU computes in it.

    On a CPU bf16 is five times as fast on cores that know it, and 15 times slower on those that do not.
    """
    if judge := held_out_figures.judge_of(config):
        config = replace(config, rewards=(*config.rewards, judge))
    if config.training.bf16 is not None:
        return config
    import torch

    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, training=replace(config.training, bf16=able))


def check(run_dir: RunDir, config: RunConfig) -> int:
    """Write preflight.json; its first error is also error.json, as it would be for a run."""
    from training.rlhf import preflight

    report = preflight.check(run_dir, settled(config))
    write_json(run_dir.preflight, report)
    if report["ok"]:
        return EXIT_COMPLETE
    write_json(run_dir.error, report["errors"][0])
    return EXIT_REFUSED


def carry_out(run_dir: RunDir, config: RunConfig) -> None:
    started = time.monotonic()
    leftovers.sweep(run_dir)
    run_dir.rehearsal.unlink(missing_ok=True)  # that of an earlier attempt tells nothing of this one
    checkpoints.remove_incomplete(run_dir)
    meter = cost.Meter(run_dir)
    progress = ProgressWriter(run_dir)
    result: dict[str, Any] = {"format": FORMAT, "method": config.method}
    if config.method == "sample":
        progress.write("Loading torch and the policies")
        from training.rlhf import sampling

        sampling.run(run_dir, config, progress)
    elif METHODS[config.method].makes == "dataset":
        progress.write("Loading torch")
        from training.rlhf import learners

        result |= learners.make_data(run_dir, config, progress)
    else:
        progress.write("Loading torch")
        from training.rlhf import recipe

        config = settled(config)
        result |= recipe.train(run_dir, config, progress)
        raise_if_stopped()
        by_dataset = result.pop("datasets", None)
        trained = time.monotonic()
        result["evaluation"] = recipe.evaluate(run_dir, config, progress, by_dataset=by_dataset)
        result["cost"] = meter.read(
            train_seconds=float(result.get("train_seconds", 0.0)),
            evaluation_seconds=time.monotonic() - trained,
        )
        meter.note(result["cost"])
        result["evaluation"] = {**result["evaluation"], "cost": result["cost"]}
        recipe.add_to_evaluation(run_dir, result)
    result["seconds"] = round(time.monotonic() - started, 2)
    progress.write("Complete")
    write_json(run_dir.result, result)
    shutil.rmtree(run_dir.checkpoints, ignore_errors=True)  # the model is whole: nothing resumes this run


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is on disk; taking torch apart in order would take a second or more
