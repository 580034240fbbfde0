"""A run stops when its held-out figure gets no better, and its best weights are its result."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file

from tests.training_rlhf.conftest import MakeRun, write_rows
from tests.training_rlhf.learning import answered
from tests.training_rlhf.test_ppo import Letters, ppo_run
from training.rlhf import ppo, progress, recipe
from training.rlhf.__main__ import main, settled
from training.rlhf.config import RunConfig
from training.rlhf.early import keeper as keeper_module
from training.rlhf.early.early_stopping import Standing
from training.rlhf.held_out_figures import JUDGE, watched
from training.rlhf.method_settings import ConfigError
from training.rlhf.progress import Cancelled
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds.reward_interface import RewardBatch
from training.rlhf.run_dir import EXIT_COMPLETE, ProgressWriter, RunDir
from training.rlhf.sampling import Sampled

STOPS: dict[str, Any] = {"evaluate_every": 2, "patience": 2}


@pytest.fixture(autouse=True)
def nobody_asks_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress._Stop, "requested", False)


LORA = {"kind": "lora", "lora_rank": 4, "lora_dropout": 0.1}  # dropout: the random state matters


def overfitting_run(make_run: MakeRun, *, tuning: dict[str, Any] = LORA, **training: Any) -> RunDir:
    """Few rows of noise at a high rate: what is learnt by heart says nothing of the held-out ones."""
    settings = STOPS | {"epochs": 40.0, "learning_rate": 2e-2, "save_every": 3, "warmup_ratio": 0.0}
    run_dir = make_run("sft", training=settings | training, tuning=tuning)
    for split, first in (("train", 0), ("test", 100)):
        rows = [
            answered(number, "".join(random.Random(number).choices("abcdefgh", k=8)))
            for number in range(first, first + 8)
        ]
        write_rows(run_dir.data / f"demonstrations.{split}.jsonl", rows)
    return run_dir


def learn(run_dir: RunDir) -> dict[str, Any]:
    config = settled(RunConfig.load(run_dir.config))
    return recipe.train(run_dir, config, ProgressWriter(run_dir))


def weights(run_dir: RunDir) -> dict[str, bytes]:
    return {
        name: one.numpy().tobytes() for name, one in load_file(run_dir.model / "model.safetensors").items()
    }


def held_out_curve(run_dir: RunDir, name: str = "eval_loss") -> dict[int, float]:
    lines = [line for line in run_dir.progress_after(0) if name in line["values"]]
    return {line["step"]: line["values"][name] for line in lines[::-1]}  # the first of a step


def test_a_run_that_learns_by_heart_stops_and_keeps_its_best_weights(make_run: MakeRun) -> None:
    run_dir = overfitting_run(make_run, tuning={"kind": "full"}, learning_rate=1e-2, evaluate_every=4)
    found = learn(run_dir)
    curve, stopping = held_out_curve(run_dir), found["early_stopping"]
    judged = {step: value for step, value in curve.items() if step <= stopping["stopped_step"]}
    best = min(judged, key=lambda step: judged[step])
    assert stopping["best_step"] == best
    assert stopping["stopped_step"] == best + 2 * 4 < 80  # it would have taken 80 steps
    assert found["held_out"]["eval_loss"] == pytest.approx(judged[best], abs=1e-4)
    assert found["held_out"]["eval_loss"] < judged[stopping["stopped_step"]] - 0.01
    said = [line["message"] for line in run_dir.progress_after(0)]
    step = stopping["stopped_step"]
    assert any(one.startswith(f"Stopped early at step {step}: best at step {best}") for one in said)


@pytest.mark.parametrize("cut", ["between", "at an evaluation", "after the end"])
def test_a_run_that_was_cut_stops_where_one_that_ran_through_stops(
    cut: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, broken = overfitting_run(make_run), overfitting_run(make_run)
    whole = learn(through)["early_stopping"]
    assert whole["stopped_step"]
    at = {"between": 3, "at an evaluation": 4, "after the end": 0}[cut]

    if at:
        with monkeypatch.context() as patch, pytest.raises(Cancelled):
            patch.setattr("training.rlhf.fitting.Reporter.on_step_begin", _asks_for_a_stop_before(at))
            learn(broken)
        progress._Stop.requested = False
    else:
        learn(broken)
        shutil.rmtree(broken.model)
    shutil.rmtree(broken.checkpoints / "best", ignore_errors=True)  # a checkpoint holds all that it needs
    assert learn(broken)["early_stopping"] == whole
    assert weights(broken) == weights(through)


def _asks_for_a_stop_before(step: int) -> Any:
    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step - 1:
            progress._Stop.requested = True

    return on_step_begin


def test_the_whole_run_tells_where_it_stopped(make_run: MakeRun) -> None:
    run_dir = overfitting_run(make_run)
    assert main([str(run_dir.path)]) == EXIT_COMPLETE
    evaluation = json.loads(run_dir.evaluation.read_text())
    result = json.loads(run_dir.result.read_text())
    assert evaluation["early_stopping"] == result["early_stopping"]
    assert evaluation["early_stopping"]["best_step"] < evaluation["early_stopping"]["stopped_step"]


def test_a_reward_model_stops_by_its_held_out_accuracy(make_run: MakeRun) -> None:
    run_dir = make_run("reward_model", pairs=40, training=STOPS | {"epochs": 10.0})
    found = learn(run_dir)
    stopping = found["early_stopping"]
    assert stopping["figure"] == "eval_accuracy"
    curve = held_out_curve(run_dir, "eval_accuracy")
    judged = {step: value for step, value in curve.items() if step <= stopping["judged_step"]}
    assert stopping["best"] == max(judged.values()) == judged[stopping["best_step"]]
    assert stopping["stopped_step"] == stopping["best_step"] + 4


class Fades(Letters):
    """Rewards in training what it does not on held-out prompts: their reward falls call by call."""

    def __init__(self) -> None:
        self.value_from = None
        self.calls = 0

    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
        scored = super().score(prompts, samples)
        if len(prompts) > 4:
            return scored
        self.calls += 1
        return RewardBatch(total=[-float(self.calls)] * len(prompts), parts=scored.parts)


def test_ppo_stops_when_the_held_out_reward_falls_and_resumes_exactly(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = STOPS | {"max_steps": 12, "save_every": 5, "evaluate_every": 1}
    runs = [ppo_run(make_run, training=training) for _ in range(2)]
    configs = [RunConfig.load(run.config) for run in runs]
    found = ppo.train(runs[0], configs[0], ProgressWriter(runs[0]), rewards=Fades())["early_stopping"]
    assert (found["best_step"], found["stopped_step"]) == (1, 3)

    rewards, update, done = Fades(), ppo.Loop.update, [0]

    def stops_in_the_second_step(self: ppo.Loop, *arguments: Any, **options: Any) -> list[float]:
        done[0] += 1
        progress._Stop.requested = done[0] == 6
        return update(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Cancelled):
        patch.setattr(ppo.Loop, "update", stops_in_the_second_step)
        ppo.train(runs[1], configs[1], ProgressWriter(runs[1]), rewards=rewards)
    progress._Stop.requested = False
    shutil.rmtree(runs[1].checkpoints / "best")
    again = ppo.train(runs[1], configs[1], ProgressWriter(runs[1]), rewards=rewards)["early_stopping"]
    assert again == found
    assert weights(runs[0]) == weights(runs[1])


def test_rloo_stops_by_the_reward_of_held_out_prompts(make_run: MakeRun) -> None:
    run_dir = make_run(
        "rloo",
        rewards=[{"name": "letters", "kind": "regex", "options": {"pattern": "e"}}],
        rloo={"completions_per_prompt": 4},
        training={"batch_size": 8, "max_steps": 8, "evaluate_every": 1, "patience": 1, "min_delta": 10.0},
    )
    write_rows(
        run_dir.data / "prompts.train.jsonl",
        [{"prompt": [{"role": "user", "content": f"Say {n}"}]} for n in range(8)],
    )
    found = learn(run_dir)["early_stopping"]
    assert found["figure"] == "eval_reward"
    assert (found["best_step"], found["stopped_step"]) == (1, 2)  # nothing gains 10


def test_an_online_run_with_another_model_to_evaluate_by_is_judged_by_that(tiny_policy: Path) -> None:
    learnt = {"name": "reward", "kind": "model", "location": "/models/a"}
    data = {
        "method": "ppo",
        "model": str(tiny_policy),
        "rewards": [learnt],
        "reward_model": "/models/b",
        "training": {"evaluate_every": 5, "bf16": False},
    }
    config = settled(RunConfig.from_json(data))
    assert [(one.name, one.weight, one.location) for one in config.rewards] == [
        ("reward", 1.0, "/models/a"),
        (JUDGE, 0.0, "/models/b"),
    ]
    assert [figure.name for figure in watched(config)] == [f"eval_rewards/{JUDGE}/mean"]
    same = settled(RunConfig.from_json(data | {"reward_model": "/models/a"}))
    assert [figure.name for figure in watched(same)] == ["eval_reward"]


def test_only_an_evaluation_that_is_better_by_enough_counts(tiny_policy: Path) -> None:
    config = RunConfig(method="sft", model=str(tiny_policy))
    config = replace(config, training=replace(config.training, patience=2, min_delta=0.1))
    standing = Standing()
    values = [0.5, 0.55, 0.65, 0.7, float("nan"), 0.9]
    better = []
    for step, value in enumerate(values, start=1):
        if standing.stopped_step:
            break
        better.append(standing.take(value, step=step, higher_is_better=True, config=config))
    assert better == [True, False, True, False, False]
    assert (standing.best, standing.best_step, standing.stopped_step) == (0.65, 3, 5)


def test_a_run_without_held_out_rows_is_refused_by_its_check(make_run: MakeRun) -> None:
    run_dir = overfitting_run(make_run)
    (run_dir.data / "demonstrations.test.jsonl").unlink()
    for path in run_dir.data.glob("*.test.jsonl"):
        path.write_text("")
    main([str(run_dir.path), "--preflight"])
    error = json.loads(run_dir.preflight.read_text())["errors"][0]
    assert "no held-out rows" in error["what"]
    assert "evaluate_every to 0" in error["do"]


def test_rejection_sampling_cannot_be_evaluated_while_it_learns() -> None:
    with pytest.raises(ConfigError, match="evaluate_every: rejection sampling"):
        RunConfig.from_json(
            {"method": "rejection_sampling", "model": "m", "training": {"evaluate_every": 1},
             "rewards": [{"name": "short", "kind": "length", "options": {"target": 5}}]}
        )  # fmt: skip


def test_torch_draws_the_same_whether_it_evaluates_or_not() -> None:
    torch.manual_seed(1)
    with keeper_module.random_state_kept():
        torch.rand(3)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
