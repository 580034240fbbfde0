"""An evaluation that fails does not withhold the model that was trained."""

import errno
import json
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import MakeRun  # noqa: E402
from training.rlhf import __main__ as child  # noqa: E402
from training.rlhf import evaluation, loading, recipe  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.progress import Cancelled  # noqa: E402
from training.rlhf.run_dir import (  # noqa: E402
    EXIT_CANCELLED,
    EXIT_COMPLETE,
    EXIT_CRASHED,
    ProgressWriter,
    RunDir,
)

STEPS = {"training": {"max_steps": 2}}


def failing(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    def fail(*_: Any) -> None:
        raise error

    name = "evaluate_policy" if method == "dpo" else "evaluate_reward_model"
    monkeypatch.setattr(evaluation, name, fail)


@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_the_model_comes_home_with_the_error_in_place_of_figures(
    method: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, method, RuntimeError("CUDA error: an illegal memory access"))
    run_dir = make_run(method, **STEPS)
    assert child.work(run_dir, only_preflight=False) == EXIT_COMPLETE
    result = json.loads(run_dir.result.read_text())
    said = json.loads(run_dir.evaluation.read_text())["error"]
    assert result["evaluation"]["error"] == said
    assert not {"accuracy", "win_rate"} & result["evaluation"].keys()
    assert "illegal memory access" in said["what"] and "model is whole" in said["do"]
    assert not run_dir.error.exists()
    if method == "dpo":
        loading.load_policy(str(run_dir.model))
    else:
        loading.load_reward_model(run_dir.model)
    assert any("evaluation failed" in line["message"] for line in run_dir.progress_after(0))


def test_a_damaged_file_of_prompts_is_named(make_run: MakeRun) -> None:
    run_dir = make_run("dpo", **STEPS)
    (run_dir.data / "prompts.test.jsonl").write_text('{"prompt": 5}\n')
    assert child.work(run_dir, only_preflight=False) == EXIT_COMPLETE
    said = json.loads(run_dir.evaluation.read_text())["error"]
    assert said["where"] == "prompts.test.jsonl, line 1"


@pytest.mark.parametrize(
    ("error", "code"),
    [(Cancelled(), EXIT_CANCELLED), (OSError(errno.ENOSPC, "No space left on device"), EXIT_CRASHED)],
    ids=["a stop", "a full disk"],
)
def test_what_can_be_resumed_does_not_end_the_run(
    error: Exception, code: int, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run("dpo", **STEPS)
    with monkeypatch.context() as patch:
        failing(patch, "dpo", error)
        assert child.work(run_dir, only_preflight=False) == code
        assert not run_dir.is_complete and not run_dir.evaluation.exists()
    assert child.work(run_dir, only_preflight=False) == EXIT_COMPLETE
    assert "kl" in json.loads(run_dir.evaluation.read_text())


def test_a_stop_during_a_real_evaluation_is_a_stop(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.rlhf import progress

    run_dir: RunDir = make_run("dpo", **STEPS)
    config = RunConfig.load(run_dir.config)
    run_dir.model.symlink_to(config.model)
    monkeypatch.setattr(progress._Stop, "requested", True)
    with pytest.raises(Cancelled):
        recipe.evaluate(run_dir, config, ProgressWriter(run_dir))
    assert not run_dir.evaluation.exists()
