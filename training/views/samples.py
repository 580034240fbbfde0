"""A policy's completions beside its parent's, read from the run folder for the policy page."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.utils.safestring import SafeString

from labeling.rendering import shown
from training.models import Run
from training.rlhf.run_dir import RunDir, read_jsonl

SHOWN = 6  # prompts on the page
LINES = 20_000  # of completions.jsonl at most: a page never reads a folder without end


@dataclass
class Sample:
    prompt: SafeString
    new: SafeString | str = ""
    old: SafeString | str = ""
    new_is_cut: bool = False  # stopped by the limit, not by itself
    old_is_cut: bool = False


def samples_of(run: Run) -> list[Sample]:
    """The first held-out prompts with what both policies wrote; empty where the folder holds none."""
    folder = RunDir(run.folder)
    try:
        prompts = list(islice(read_jsonl(folder.data / "prompts.test.jsonl"), SHOWN))
        samples = [Sample(prompt=shown(_last_turn(row))) for row in prompts]
        for line in islice(read_jsonl(folder.completions), LINES):
            if line["request"] < len(samples) and line["policy"] in ("new", "old"):
                _put(samples[line["request"]], line)
    except (OSError, ValueError, KeyError, TypeError):
        return []  # the folder was moved or tidied away: the page shows the rest
    return [sample for sample in samples if sample.new]


def _put(sample: Sample, line: dict[str, Any]) -> None:
    is_cut = line["finish"] == "length"
    if line["policy"] == "new":
        sample.new, sample.new_is_cut = shown(line["text"]), is_cut
    else:
        sample.old, sample.old_is_cut = shown(line["text"]), is_cut


def _last_turn(row: dict[str, Any]) -> str:
    return str(row["prompt"][-1]["content"])
