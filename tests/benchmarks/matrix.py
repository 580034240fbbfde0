"""Every method with every kind of tuning, run for real on a tiny policy: does the pair work, and is it exact?

    python -m tests.benchmarks.matrix [--methods dpo,sft] [--kinds lora,prompt] [--write docs/matrix.md]

A pair works when the preflight passes, six steps end, every figure that was reported is a number, the
weights that the kind names have moved and no others, model/ is loaded again as anybody would and writes or
scores, and the same run from the checkpoint of its middle ends with the very same files. A pair that the
recipe refuses (training.rlhf.compatibility) must be refused by RunConfig, with that reason. Prints a table
and, as the last line, one JSON object; the exit status is 1 when a pair failed.
"""

import argparse
import gc
import hashlib
import importlib.util
import itertools
import json
import math
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from training.rlhf.compatibility import why_not
from training.rlhf.config import ConfigError, RunConfig
from training.rlhf.methods import METHODS, Method
from training.rlhf.run_dir import ProgressWriter, RunDir
from training.rlhf.tuning_settings import BESIDE_THE_WEIGHTS, KINDS

STEPS, MIDDLE = 6, 3
# Which of the base's tensors in model/ may differ from those it began with, by kind; all where none is named.
MAY_MOVE = {
    "head": r"lm_head|score",
    "freeze": r"layers\.1\.|model\.norm|lm_head|score",
    "lora": r"_proj|score",
    "dora": r"_proj|score",
    "qlora": r"_proj|score",
    "ia3": r"k_proj|v_proj|down_proj|score",
} | dict.fromkeys(BESIDE_THE_WEIGHTS, r"score")


class Outcome(NamedTuple):
    """Of one pair. `state`: works, refused, failed or not built; `ms` of a step, the start not counted."""

    state: str
    why: str = ""
    ms: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", default="", help="names, with commas; all that train if left out")
    parser.add_argument("--kinds", default="", help="of tuning, with commas; all if left out")
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    methods = options.methods.split(",") if options.methods else trained_methods()
    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    outcomes: dict[str, dict[str, Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="ratchet-matrix-") as folder:
        policy = tiny_policy(Path(folder))
        for method in methods:
            outcomes[method] = {}
            for kind in kinds:
                outcome = outcome_of(Path(folder) / f"{method}-{kind}", policy, METHODS[method], kind)
                outcomes[method][kind] = outcome
                print(f"{method} {kind}: {outcome.state} {outcome.why}", file=sys.stderr, flush=True)
    text = table(outcomes)
    if options.write:
        options.write.write_text(document(text), encoding="utf-8")
    print(text)
    print(json.dumps({m: {k: one._asdict() for k, one in row.items()} for m, row in outcomes.items()}))
    return int(any(one.state == "failed" for row in outcomes.values() for one in row.values()))


def trained_methods() -> list[str]:
    return [name for name, method in METHODS.items() if method.makes in ("reward_model", "policy")]


def tiny_policy(folder: Path) -> Path:
    from tests.training_rlhf.conftest import save_tiny_policy

    policy = folder / "policy"
    policy.mkdir()
    save_tiny_policy(policy)
    return policy


def outcome_of(folder: Path, policy: Path, method: Method, kind: str) -> Outcome:
    if importlib.util.find_spec(f"training.rlhf.{method.name}") is None:
        return Outcome("not built")
    recipe = recipe_of(policy, method, kind)
    reason = why_not(method.name, kind)
    if reason:
        try:
            RunConfig.from_json(recipe)
        except ConfigError as error:
            is_said = reason in str(error)
            return Outcome("refused", reason) if is_said else Outcome("failed", f"another reason: {error}")
        return Outcome("failed", "the recipe takes what the table refuses")
    try:
        return Outcome("works", ms=run_pair(write_run(folder, method, recipe), method))
    except Exception as error:  # one pair of many: the others are tried too
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {error}"[:300])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()


def recipe_of(policy: Path, method: Method, kind: str) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "method": method.name,
        "model": str(policy),
        "tuning": {"kind": kind, "lora_rank": 4, "lora_dropout": 0.1, "virtual_tokens": 8},
        "training": {
            "max_steps": STEPS, "save_every": MIDDLE, "log_every": 1, "batch_size": 4, "learning_rate": 1e-2,
            "warmup_ratio": 0.0,
        },
        "sampling": {"max_new_tokens": 8, "batch_size": 8},
    }  # fmt: skip
    if method.is_online:
        recipe["rewards"] = [{"name": "length", "kind": "length", "options": {"target": 4}}]
        own = {"ppo": {"rollout_size": 4}, "rejection_sampling": {"completions_per_prompt": 16}}
        recipe[method.name] = own.get(method.name, {"completions_per_prompt": 2})
    if method.name == "rejection_sampling":  # it imitates what ended, and the tiny policy seldom does
        recipe["sampling"] = {"max_new_tokens": 64, "batch_size": 64}
    if method.needs_teacher:
        recipe["distillation"] = {"system_prompt": "Be kind."}
    return recipe


def write_run(folder: Path, method: Method, recipe: dict[str, Any]) -> RunDir:
    """Rows for every method: it reads what it learns from."""
    from tests.training_rlhf.conftest import pair_row, rating_row, write_rows

    run_dir = RunDir(folder)
    for split, start, count in (("train", 0, 24), ("test", 1000, 6)):
        pairs = [pair_row(start + number) for number in range(count)]
        rows: dict[str, list[dict[str, Any]]] = {
            "pairs": pairs,
            "ratings": [rating_row(start + number) for number in range(count)],
            "demonstrations": [{"prompt": one["prompt"], "completion": one["chosen"]} for one in pairs],
            "prompts": [{"prompt": one["prompt"]} for one in pairs],
            "texts": [{"text": f"Text {start + number} of its own field."} for number in range(count)],
        }  # fmt: skip
        for name, written in rows.items():
            if name in method.tables or name == "prompts":
                write_rows(run_dir.data / f"{name}.{split}.jsonl", written)
    run_dir.config.write_text(json.dumps(recipe), encoding="utf-8")
    return run_dir


def run_pair(run_dir: RunDir, method: Method) -> float:
    """Raises where the pair does not do what the module's docstring says; milliseconds of a step."""
    from training.rlhf import preflight, recipe
    from training.rlhf.__main__ import settled

    config = settled(RunConfig.load(run_dir.config))
    report = preflight.check(run_dir, config)
    assert report["ok"], report["errors"]
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    found = recipe.evaluate(run_dir, config, ProgressWriter(run_dir))
    assert "error" not in found, found["error"]
    lines = list(run_dir.progress_after(0))
    assert lines[-1]["step"] == lines[-1]["total_steps"] or any(one["step"] >= STEPS for one in lines)
    numbers = [number for line in lines for number in line["values"].values()]
    assert numbers and all(map(math.isfinite, numbers)), "a figure is no number"
    check_moved(run_dir, config)
    check_use(run_dir, method)
    check_resumed(run_dir, config)
    return milliseconds(lines)


def check_moved(run_dir: RunDir, config: RunConfig) -> None:
    from safetensors.torch import load_file

    before = load_file(Path(config.model) / "model.safetensors")
    after = load_file(run_dir.model / "model.safetensors")
    # The tiny policy's head is its embeddings, and where it gets a matrix of its own, it begins as a copy.
    before.setdefault("lm_head.weight", before["model.embed_tokens.weight"])
    moved = {name for name, one in after.items() if name not in before or not one.equal(before[name])}
    kind = config.tuning.kind
    others = [name for name in moved if not re.search(MAY_MOVE.get(kind, ""), name)]
    assert not others, f"moved, but not to be trained: {others[:3]}"
    if kind not in BESIDE_THE_WEIGHTS:
        assert moved, "no weight moved"
    if kind == "full":
        assert len(moved) > 0.9 * len(after), f"only {len(moved)} of {len(after)} tensors moved"


def check_use(run_dir: RunDir, method: Method) -> None:
    """As anybody would load it; what lies beside the weights has to say something too."""
    import torch

    from training.rlhf import loading, sampling, scoring
    from training.rlhf.config import Sampling

    talk = [{"role": "user", "content": "Hello?"}]
    if method.makes == "reward_model":
        answer = [*talk, {"role": "assistant", "content": "Hello Ada!"}]
        (score,) = scoring.reward_scores(*loading.load_reward_model(run_dir.model), [answer])
        assert math.isfinite(score)
        return
    tokenizer, model = loading.load_tokenizer(str(run_dir.model)), loading.load_policy(str(run_dir.model))
    (drawn,) = sampling.generate(model, tokenizer, [talk], sampling=Sampling(max_new_tokens=4), seed=0)
    assert drawn.ids
    base: Any = loading.load_policy(str(RunConfig.load(run_dir.config).model))
    ids = torch.tensor([[1, 3, 40, 50]])
    with torch.inference_mode():
        old, new = (
            one(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1] for one in (base, model)
        )
    assert not torch.allclose(old, new, atol=1e-6), "the policy says what it said before"


def check_resumed(run_dir: RunDir, config: RunConfig) -> None:
    """From the checkpoint before the last, if the method left one."""
    from training.rlhf import recipe

    whole = stored(run_dir)
    saved = sorted(run_dir.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(saved) > 1, "there is no checkpoint of the middle to go on from"
    shutil.rmtree(saved[-1])
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    assert stored(run_dir) == whole, "a resumed run ends with other weights"


def stored(run_dir: RunDir) -> dict[str, str]:
    files = run_dir.model.rglob("*.safetensors")
    return {str(f.relative_to(run_dir.model)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def milliseconds(lines: list[Any]) -> float:
    """Of a step: the median distance in time between lines of successive steps."""
    first: dict[int, float] = {}
    for line in lines:
        first.setdefault(line["step"], line["time"])
    steps = sorted(step for step in first if step > 0)
    gaps = sorted(first[b] - first[a] for a, b in itertools.pairwise(steps) if b == a + 1)
    return round(1000 * gaps[len(gaps) // 2], 1) if gaps else 0.0


def table(outcomes: dict[str, dict[str, Outcome]]) -> str:
    methods = list(outcomes)
    reasons: list[str] = []
    lines = [
        "| | " + " | ".join(METHODS[method].label for method in methods) + " |",
        "|---|" + "---|" * len(methods),
    ]
    for kind in next(iter(outcomes.values())):
        cells = [cell(outcomes[method][kind], reasons) for method in methods]
        lines.append(f"| {KINDS[kind]} (`{kind}`) | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join(lines) + ("\n\n" + "\n".join(notes) if notes else "")


def cell(outcome: Outcome, reasons: list[str]) -> str:
    if outcome.state == "works":
        return f"{outcome.ms:.0f} ms" if outcome.ms else "works"
    if outcome.why and outcome.why not in reasons:
        reasons.append(outcome.why)
    note = f" ({reasons.index(outcome.why) + 1})" if outcome.why else ""
    return f"{outcome.state}{note}"


def document(text: str) -> str:
    return f"""# What can be trained how

Generated by `make matrix` on {time.strftime("%d %B %Y")}; do not edit. A cell with a time works: the pair was
run for {STEPS} steps in batches of four on a policy of 29,024 weights (two layers, 32 wide), on a CPU. What
"works" means is in `tests/benchmarks/matrix.py`: finite figures, the weights that the kind names moved and no
others, the model is loaded again and writes or scores, and a run that goes on from its middle ends with the
same files, bit by bit. Times are medians of a step on a busy machine and say little of large models.

{text}

Whatever the method, prefix tuning and P-tuning v2 are refused with gradient checkpointing. What a model
learnt by bottleneck adapters or virtual tokens cannot be merged into its weights: it lies beside them
(`model/adapter.json`, `model/adapter/`). Such a model writes, scores and is evaluated, and no further
training begins from it.
"""


if __name__ == "__main__":
    raise SystemExit(main())
