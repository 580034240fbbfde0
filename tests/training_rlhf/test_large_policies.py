"""The usual recipe for large policies: LoRA on a bf16 base, with checkpointing and accumulation."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import in_bf16, stored_dtypes, write_rows  # noqa: E402
from tests.training_rlhf.learning import answered, curve, greeting, learn, make_config  # noqa: E402
from training.rlhf import fitting  # noqa: E402
from training.rlhf.run_dir import RunDir  # noqa: E402

ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "sft": ("demonstrations", [greeting(number) for number in range(32)]),
    "kto": (
        "unpaired",
        [
            greeting(number, label=True) if number % 2 else answered(number, "no" * 5, label=False)
            for number in range(32)
        ],
    ),
    "pretraining": ("texts", [{"text": "The tide and the moon. " * 8} for _ in range(32)]),
}


@pytest.mark.parametrize("method", ROWS)
def test_the_usual_recipe_for_large_policies_learns_and_is_stored_as_its_base(
    method: str, tiny_policy: Path, tmp_path: Path
) -> None:
    config = make_config(
        method,
        in_bf16(tiny_policy, tmp_path / "policy"),
        lora=True,
        epochs=6.0,
        bf16=True,
        gradient_checkpointing=True,
        gradient_accumulation=2,
        learning_rate=5e-3,
        max_length=128,
    )
    run_dir = RunDir(tmp_path / "run")
    table, rows = ROWS[method]
    write_rows(run_dir.data / f"{table}.train.jsonl", rows)
    trainer = learn(config, run_dir)
    losses = curve(trainer)
    # The frozen head's random rows are short: no adapter brings the likelihood of a token below 4.9 nats.
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])
    fitting.save_trained(trainer, trainer.processing_class, run_dir=run_dir, config=config)
    assert stored_dtypes(run_dir.model) == {torch.bfloat16}
