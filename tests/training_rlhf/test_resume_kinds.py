"""A run goes on bit-exactly whatever is trained, also from a part of PEFT that PEFT would not store."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import write_run  # noqa: E402
from training.rlhf import recipe  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402


def train(run_dir: RunDir) -> None:
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("dpo", "head"),
        ("reward_model", "freeze"),
        ("dpo", "dora"),
        ("reward_model", "qlora"),
        ("dpo", "bottleneck"),
        ("reward_model", "ia3"),
        ("dpo", "prefix"),
        ("reward_model", "p_tuning"),
        ("dpo", "prompt"),
    ],
)
def test_every_kind_of_tuning_goes_on_bit_exactly(
    method: str, kind: str, tiny_policy: Path, tmp_path: Path
) -> None:
    """From the checkpoint of its third step, as after a crash in the sixth; all pairs: `make matrix`."""
    run_dir = write_run(
        tmp_path, model=tiny_policy, method=method, pairs=16, tuning={"kind": kind, "lora_dropout": 0.1},
        training={"max_steps": 6, "save_every": 3, "learning_rate": 1e-2},
    )  # fmt: skip
    train(run_dir)
    whole = stored(run_dir)
    shutil.rmtree(run_dir.checkpoints / "checkpoint-6")
    torch.manual_seed(99)  # a new process has drawn other numbers
    train(run_dir)
    assert stored(run_dir) == whole
    assert any("from step 3" in line["message"] for line in run_dir.progress_after(0))


def stored(run_dir: RunDir) -> dict[str, str]:
    """The hash of every file of weights in model/."""
    files = run_dir.model.rglob("*.safetensors")
    return {str(f.relative_to(run_dir.model)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_checkpoint_of_another_kind_of_tuning_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    short = {"max_steps": 4, "save_every": 2}
    made: dict[str, Any] = {"model": tiny_policy, "method": "dpo", "pairs": 8, "training": short}
    run_dir = write_run(tmp_path, **made)
    train(run_dir)
    write_run(tmp_path, **made, tuning={"kind": "head"})
    with pytest.raises(Refused, match="other weights than this recipe trains"):
        train(run_dir)
