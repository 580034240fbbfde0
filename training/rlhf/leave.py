"""A model in the form in which it leaves: `python -m training.rlhf.leave FOLDER` carries out FOLDER/job.json.

The files are written as transformers, PEFT and vLLM read them (leaving.exported), looked through as a
loader would, and pushed where a repository is named (leaving.hub; the token is HF_TOKEN's). What is
there of an earlier attempt is written anew. `result.json` comes last: {"url": of the commit, or ""}.
"""

import argparse
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from urllib.parse import urlsplit

from training.rlhf.__main__ import ENVIRONMENT, die_with_parent, without_bitsandbytes
from training.rlhf.failures import Refused
from training.rlhf.run_dir import EXIT_COMPLETE, EXIT_CRASHED, EXIT_REFUSED, LeaveJob, LeaveState, write_json

HUGGING_FACE = "https://huggingface.co"
WRITTEN_PERCENT = 50  # where pushing begins


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.rlhf.leave", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder with job.json")
    folder = parser.parse_args(arguments).folder.resolve()
    die_with_parent()
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if urlsplit(os.environ.get("HF_ENDPOINT", HUGGING_FACE)).hostname != urlsplit(HUGGING_FACE).hostname:
        # huggingface_hub takes it for granted once it is installed; other hubs know plain LFS.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    without_bitsandbytes()
    try:
        (folder / "error.json").unlink(missing_ok=True)
        write_json(folder / "result.json", {"url": carry_out(folder)})
    except Refused as refused:
        write_json(folder / "error.json", {"what": refused.what, "where": refused.where, "do": refused.do})
        return EXIT_REFUSED
    except OSError as error:
        traceback.print_exc()
        what = f"The files cannot be written: {error.strerror or error}."
        write_json(
            folder / "error.json", {"what": what, "where": str(folder), "do": "Put it right and try again."}
        )
        return EXIT_CRASHED
    return EXIT_COMPLETE


def carry_out(folder: Path) -> str:
    """The address of the commit; empty when nothing was to be pushed. Raises Refused."""
    job: LeaveJob = json.loads((folder / "job.json").read_text(encoding="utf-8"))

    def tell(percent: int, message: str) -> None:
        write_json(folder / "state.json", LeaveState(percent=percent, message=message))

    tell(0, "Loading torch")
    from training.rlhf.leaving import exported

    draft, model = folder / "model.draft", folder / "model"
    for leftover in (draft, model):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir()
    share = WRITTEN_PERCENT if job["repo"] else 90
    exported.write(job, draft, tell=lambda part: tell(int(part * share), "Writing the weights"))
    tell(share, "Looking through what was written")
    exported.check(job, draft)
    os.replace(draft, model)
    if not job["repo"]:
        return ""
    from training.rlhf.leaving import hub

    def tell_pushed(part: float, message: str) -> None:
        tell(int(share + part * (100 - share)), message)

    return hub.push(model, repo=job["repo"], private=job["private"], message=job["message"], tell=tell_pushed)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
