"""A judge is asked what people were asked: what is found of one that agrees, one that looks at places, one
that mumbles; by hand, and through the process that a worker starts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import pair_row, ranking_row  # noqa: E402
from tests.training_rlhf.test_evaluation import run_folder  # noqa: E402
from tests.training_rlhf.test_judge import Server, server, texts_of  # noqa: E402
from training.rlhf import judge_audit, preflight  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.reward_kinds import judge  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl, write_json  # noqa: E402

__all__ = ["server"]  # a fixture
Judge = Callable[[str, str], str]


def config_of(address: str, **options: Any) -> RunConfig:
    given = {"name": "wise", "kind": "judge", "location": address, "options": {"rubric": "Names.", **options}}
    return RunConfig.from_json({"method": "judge_audit", "rewards": [given]})


def answering(choose: Judge) -> Callable[[dict[str, Any]], str]:
    def answer(body: dict[str, Any]) -> str:
        asked = texts_of(body)
        one, other = (asked.partition(f"<answer_{x}>\n")[2].partition("\n</answer")[0] for x in "ab")
        return choose(one, other)

    return answer


def greets(one: str, other: str) -> str:
    return "A" if "Hello" in one else "B"


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """People prefer the greeting in 12 comparisons, and what a greeter would not in 4; one is a tie."""
    rows = [pair_row(n, strength=1 + n % 2) for n in range(12)]
    for number in range(12, 16):
        row = pair_row(number, strength=1)
        rows.append({**row, "chosen": row["rejected"], "rejected": row["chosen"]})
    rows.append(pair_row(16, p=0.5))
    return run_folder(tmp_path / "run", pairs_test=rows)


def audit(run_dir: RunDir, config: RunConfig) -> dict[str, Any]:
    judge_audit.train(run_dir, config, ProgressWriter(run_dir))
    found: dict[str, Any] = json.loads(run_dir.evaluation.read_text())["judge_audit"]
    return found


def test_a_judge_of_texts_agrees_as_often_as_it_does_and_has_no_favourite_place(
    server: Server, run_dir: RunDir
) -> None:
    server.answer = answering(greets)
    found = audit(run_dir, config_of(server.address))
    assert found["n"] == 16 and found["counts"]["first"] == 12 and found["counts"]["second"] == 4
    assert found["agreement"]["rate"] == found["decided"]["rate"] == 0.75
    assert found["agreement"]["low"] < 0.75 < found["agreement"]["high"]
    assert found["kappa"] == pytest.approx(0.5)  # (0.75 - 0.5) / (1 - 0.5)
    assert found["position"]["rate"] == 0.5
    assert found["nonsense"]["rate"] == found["inconsistent"]["rate"] == 0
    assert found["by_strength"]["2"]["rate"] == 1.0 and found["by_strength"]["1"]["rate"] == 0.6
    assert len(server.asked) == 32
    values = [line["values"] for line in run_dir.progress_after(0) if line["values"]]
    assert values[-1]["judge/agreement"] == 0.75


def test_a_judge_that_looks_at_the_place_agrees_by_chance_alone(server: Server, run_dir: RunDir) -> None:
    server.answer = answering(lambda one, other: "A")
    found = audit(run_dir, config_of(server.address))
    assert found["counts"]["inconsistent"] == 16
    assert found["agreement"]["rate"] == 0.5 and found["decided"]["rate"] is None
    assert found["kappa"] == pytest.approx(0)
    assert found["position"]["rate"] == 1 and found["inconsistent"]["rate"] == 1


def test_nonsense_is_counted_apart_and_never_as_a_preference(server: Server, run_dir: RunDir) -> None:
    server.answer = answering(lambda one, other: "Both!" if "Bo" in one + other else greets(one, other))
    found = audit(run_dir, config_of(server.address))
    about = [str(row) for row in read_jsonl(run_dir.data / "pairs.test.jsonl")][:16]
    silent = sum("Hello Bo" in row for row in about)
    assert 0 < silent < 16
    assert found["nonsense"]["rate"] == pytest.approx(silent / 16)
    assert found["agreement"]["n"] == 16 - silent


def test_kappa_is_what_is_said_by_hand() -> None:
    """Four comparisons: 5 of 8 answers on people's side, and the judge chose the first place in 5 of 8."""
    said = judge.Preferences(
        ["first", "inconsistent", "second", "first"],
        ["first", "first", "second", "first"],
        ["second", "first", "first", "second"],
    )
    # p_o = 5/8, p_e = 1/2 * 5/8 + 1/2 * 3/8 = 1/2
    assert judge_audit.kappa(said) == pytest.approx(0.25)
    assert judge_audit.position(said)["rate"] == pytest.approx(5 / 8)
    assert judge_audit.kappa(judge.Preferences(["nonsense"], [None], [None])) is None


def test_it_goes_on_where_it_stood_and_asks_nothing_twice(server: Server, run_dir: RunDir) -> None:
    server.answer = answering(greets)
    whole = audit(run_dir, config_of(server.address))
    kept = (run_dir.path / judge_audit.FILE).read_text().splitlines(keepends=True)
    (run_dir.path / judge_audit.FILE).write_text("".join(kept[:10]) + kept[10][:7])
    server.asked.clear()
    assert audit(run_dir, config_of(server.address)) == whole
    assert len(server.asked) == 12


def test_rankings_are_comparisons_too_and_no_more_are_asked_than_wanted(
    server: Server, tmp_path: Path
) -> None:
    run_dir = run_folder(tmp_path / "ranked", rankings_test=[ranking_row(n, [1, 2, 3]) for n in range(3)])
    server.answer = answering(lambda one, other: "A" if len(one) < len(other) else "B")
    config = config_of(server.address)
    assert audit(run_dir, config)["agreement"]["rate"] == 1
    assert len(judge_audit.comparisons(run_dir, config)) == 9
    few = RunConfig.from_json(config.to_json() | {"judge_audit": {"comparisons": 4}})
    assert len(judge_audit.comparisons(run_dir, few)) == 4


def test_what_cannot_be_asked_is_refused_before_the_start(
    server: Server, run_dir: RunDir, tmp_path: Path
) -> None:
    server.answer = answering(greets)
    report = preflight.check(run_dir, config_of(server.address))
    assert report["ok"] and report["rows"]["pairs"]["test"]["kept"] == 16
    server.answer = lambda body: "Hm."
    assert "answers nonsense" in preflight.check(run_dir, config_of(server.address))["errors"][0]["what"]
    empty = run_folder(tmp_path / "empty", pairs_test=[pair_row(1, p=0.5)])
    with pytest.raises(Refused, match="no held-out comparisons"):
        judge_audit.comparisons(empty, config_of(server.address))
    rule = {"name": "length", "kind": "length", "options": {"target": 3}}
    with pytest.raises(ConfigError, match="asks one judge"):
        RunConfig.from_json({"method": "judge_audit", "rewards": [rule]})


def test_the_process_of_a_worker_leaves_a_complete_run(server: Server, run_dir: RunDir) -> None:
    server.answer = answering(greets)
    write_json(run_dir.config, config_of(server.address).to_json())
    command = [sys.executable, "-m", "training.rlhf", str(run_dir.path)]
    for arguments in ([*command, "--preflight"], command):
        done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ, timeout=120)
        assert done.returncode == 0, done.stderr
    result = json.loads(run_dir.result.read_text())
    assert result["evaluation"]["judge_audit"]["agreement"]["rate"] == 0.75
    assert not run_dir.model.exists()
