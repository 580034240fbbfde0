"""What must not begin: weights that are no numbers, a judge that babbles, draws of another policy."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.training_rlhf.conftest import MakeRun  # noqa: E402
from tests.training_rlhf.test_judge import Server, judge_at, server  # noqa: E402, F401
from training.rlhf import fitting, preflight, recipe  # noqa: E402
from training.rlhf.__main__ import settled  # noqa: E402
from training.rlhf.checks import finite  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.reward_kinds import judge  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402

GROUPS = {"rloo": {"completions_per_prompt": 2}, "grpo": {"completions_per_prompt": 2}}


def report_of(run_dir: RunDir) -> Any:
    return preflight.check(run_dir, settled(RunConfig.load(run_dir.config)))


def with_nan(folder: Path) -> str:
    """Put one NaN into the file of weights, and return the tensor's name."""
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[1]
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_a_model_whose_weights_are_no_numbers_is_refused_by_name(
    method: str, make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_policy, tmp_path / "damaged")
    name = with_nan(tmp_path / "damaged")
    report = report_of(make_run(method, model=str(tmp_path / "damaged")))
    assert not report["ok"]
    assert report["errors"][0]["what"] == f"The weights hold NaN or infinity where numbers should be: {name}."
    assert "Begin from another model" in report["errors"][0]["do"]


def test_a_checkpoint_whose_weights_are_no_numbers_is_not_gone_on_from(make_run: MakeRun) -> None:
    run_dir = make_run("dpo", training={"max_steps": 4, "save_every": 2})
    config = settled(RunConfig.load(run_dir.config))
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    shutil.rmtree(run_dir.checkpoints / "checkpoint-4")
    with_nan(run_dir.checkpoints / "checkpoint-2")
    with pytest.raises(Refused, match="The checkpoint holds NaN"):
        recipe.train(run_dir, config, ProgressWriter(run_dir))
    assert (run_dir.checkpoints / "checkpoint-2" / fitting.TRAINED).exists()  # a person removes it


def test_huge_numbers_are_numbers() -> None:
    huge = torch.full((10,), 3e38)  # their sum is none
    assert finite.unsound([("huge", huge), ("half", torch.full((5,), 6e4, dtype=torch.half))]) == []
    assert finite.unsound([("one", torch.tensor([1.0, float("-inf")]))]) == ["one"]
    assert finite.in_words(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (
            "I would rather not say.",
            "answers nonsense: asked for a number from 1 to 10 alone, it said 'I would",
        ),
        ("", "answers nonsense: asked for a number from 1 to 10 alone, it said ''."),
        ((401, "no key"), "does not answer: HTTP 401 no key."),
        (None, "does not answer: "),
    ],
    ids=["nonsense", "nothing", "no key", "hangs up"],
)
def test_a_judge_is_asked_before_the_start(
    answer: Any,
    what: str,
    make_run: MakeRun,
    server: Server,  # noqa: F811
) -> None:
    def run_dir() -> RunDir:
        reward = {"name": "polite", "kind": "judge", "location": server.address}
        made = make_run("rloo", rewards=[reward | {"options": {"rubric": "Be polite."}}], rloo=GROUPS["rloo"])
        shutil.copy(made.data / "prompts.test.jsonl", made.data / "prompts.train.jsonl")
        return made

    server.answer = lambda body: "7"
    assert report_of(run_dir())["ok"]
    assert len(server.asked) == 3
    server.answer = lambda body: answer
    report = report_of(run_dir())
    assert not report["ok"]
    assert what in report["errors"][0]["what"]
    assert server.address in report["errors"][0]["where"]


def test_a_run_does_not_begin_on_a_judges_nonsense(server: Server) -> None:  # noqa: F811
    server.answer = lambda body: "As a language model I cannot"
    scorer = judge.Scorer(judge.load(judge_at(server.address), seed=0), rubric="Be polite.")
    prompts = [[{"role": "user", "content": "Say hello."}]] * judge.ENOUGH
    with pytest.raises(Refused, match="none of its first 16 answers is a number"):
        scorer.scores(prompts, ["hello"] * judge.ENOUGH)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_draws_that_are_not_the_policys_own_are_warned_of(method: str, make_run: MakeRun) -> None:
    def warnings(top_p: float) -> list[str]:
        length = {"name": "short", "kind": "length", "options": {"max": 8}}
        run_dir = make_run(
            method,
            rewards=[length],
            sampling={"top_p": top_p, "max_new_tokens": 4},
            **{method: GROUPS[method]},
        )
        shutil.copy(run_dir.data / "prompts.test.jsonl", run_dir.data / "prompts.train.jsonl")
        return [one for one in report_of(run_dir)["warnings"] if "top-p" in one]

    assert warnings(1.0) == []
    assert "Set sampling.top_p to 1" in warnings(0.9)[0]
