"""Every method from its folder to its figures, as a worker runs it: preflight, training, evaluation."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import pair_row, write_rows, write_run  # noqa: E402
from training.rlhf import loading, preflight, recipe  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.methods import METHODS  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402

TRAINS = [name for name, method in METHODS.items() if method.makes in ("reward_model", "policy")]
SHORT = [{"name": "short", "kind": "length", "options": {"target": 4, "scale": 4}}]
OWN: dict[str, dict[str, Any]] = {
    "ppo": {"ppo": {"rollout_size": 8, "epochs": 1}},
    "rloo": {"rloo": {"completions_per_prompt": 2}},
    "grpo": {"grpo": {"completions_per_prompt": 2}},
    # Of a random policy a completion ends once in 260 tokens.
    "rejection_sampling": {
        "rejection_sampling": {"completions_per_prompt": 8},
        "sampling": {"max_new_tokens": 60},
    },
    "distillation": {"distillation": {"system_prompt": "Be brief."}},
}


def make_run(folder: Path, model: Path, method: str) -> RunDir:
    config = OWN.get(method, {}) | ({"rewards": SHORT} if METHODS[method].is_online else {})
    run_dir = write_run(
        folder,
        model=model,
        method=method,
        pairs=16,
        rankings=4,
        **({"sampling": {"max_new_tokens": 6}} | config),
        training={"max_steps": 2, "batch_size": 4, "log_every": 1},
    )
    for split, start, count in (("train", 0, 12), ("test", 1000, 4)):
        rows = [pair_row(start + number) for number in range(count)]
        single = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        poor = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in rows]
        stars = [row | {"rating": 5, "criterion": ""} for row in single]
        stars += [row | {"rating": 1, "criterion": ""} for row in poor]
        write_rows(run_dir.data / f"ratings.{split}.jsonl", stars)
        write_rows(run_dir.data / f"demonstrations.{split}.jsonl", single)
        write_rows(run_dir.data / f"prompts.{split}.jsonl", [{"prompt": row["prompt"]} for row in rows])
        texts = [{"text": "Once upon a time there was a fox. " * (number % 3 + 1)} for number in range(count)]
        write_rows(run_dir.data / f"texts.{split}.jsonl", texts)
    return run_dir


@pytest.mark.parametrize("method", TRAINS)
def test_a_method_runs_from_its_check_to_its_figures(method: str, tiny_policy: Path, tmp_path: Path) -> None:
    assert importlib.util.find_spec(f"training.rlhf.{method}"), "no such module"
    run_dir = make_run(tmp_path, tiny_policy, method)
    config = RunConfig.load(run_dir.config)
    report = preflight.check(run_dir, config)
    assert report["ok"], report["errors"]
    assert report["estimate"]["steps"] == 2
    result = recipe.train(run_dir, config, ProgressWriter(run_dir))
    figures = recipe.evaluate(run_dir, config, ProgressWriter(run_dir))
    assert result["lineage"]["method"] == method
    assert result["rows"]["train"]["kept"] > 0
    assert "error" not in figures
    steps = [line for line in run_dir.progress_after(0) if "loss" in " ".join(line["values"])]
    assert steps
    if METHODS[method].makes == "reward_model":
        loading.load_reward_model(run_dir.model)
        assert figures["accuracy"] is not None
    else:
        loading.load_policy(str(run_dir.model))
        assert figures["prompts"] == 4
        assert run_dir.completions.exists()
