"""Signs of a run that goes wrong are said aloud, once, and not of a run that goes well."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from training.rlhf.checks.alarms import Alarms  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl  # noqa: E402


def told(folder: Path, logs: list[dict[str, float]], *, beta: float = 0.1) -> list[dict[str, Any]]:
    alarms = Alarms(ProgressWriter(RunDir(folder)))
    for line in logs:
        alarms.on_log(cast(Any, SimpleNamespace(beta=beta)), cast(Any, None), cast(Any, None), logs=line)
    return list(read_jsonl(folder / "progress.jsonl"))


def pair(reward: float, logps: float) -> dict[str, float]:
    return {"rewards/chosen": reward, "logps/chosen": logps}


def test_chosen_completions_that_become_unlikely_are_told_of_once(tmp_path: Path) -> None:
    # 20 nats at beta 0.1, of a completion that was at -40.
    lines = told(tmp_path, [pair(-2.0, -60.0)] * 6)
    assert [line["values"] for line in lines] == [{"alarms/chosen_fell": pytest.approx(20.0)}]
    assert "20 nats less likely" in lines[0]["message"]
    assert "sft_weight" in lines[0]["message"]


@pytest.mark.parametrize(
    "logs",
    [
        [pair(-0.4, -40.0)] * 8,  # DPO on the demo: 4 nats of 36
        [pair(-2.0, -400.0)] * 8,  # 20 nats of 380: a long completion
        [pair(-9.0, -120.0), *[pair(-0.2, -30.0)] * 6],  # one batch
        [{"eos_rate": 0.2}] * 6,  # never did: that is no change
        [{"kl": -0.2}] * 6,
    ],
    ids=["little", "little of a long one", "one batch", "cut from the start", "noise"],
)
def test_what_is_usual_is_no_alarm(logs: list[dict[str, float]], tmp_path: Path) -> None:
    assert told(tmp_path, logs) == []


def test_completions_that_end_no_more_and_a_negative_kl_are_told_of(tmp_path: Path) -> None:
    lines = told(tmp_path, [{"eos_rate": 0.95, "kl": 0.0}, *[{"eos_rate": 0.3, "kl": -4.0}] * 4])
    assert {name for line in lines for name in line["values"]} == {"alarms/eos_rate", "alarms/negative_kl"}
    assert any("30% of completions still end" in line["message"] for line in lines)
