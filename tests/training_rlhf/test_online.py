"""RLOO and GRPO: they learn, they are told when texts are cut, and they resume to the bit."""

import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from training.rlhf import fitting, grpo, loading, progress, rendering, rloo, sampling  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.online import PromptSampler  # noqa: E402
from training.rlhf.progress import Cancelled  # noqa: E402
from training.rlhf.rows.single_rows import PromptRow  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl  # noqa: E402
from training.rlhf.scoring import completion_logprobs  # noqa: E402

METHODS = {"rloo": rloo, "grpo": grpo}
VOWELS = {"name": "vowels", "kind": "regex", "options": {"pattern": "[aeiou]", "mode": "count", "most": 20}}
Make = Callable[..., Any]


def prompts(count: int) -> list[PromptRow]:
    return [
        PromptRow(line=n, prompt=[{"role": "user", "content": "Say" + " it" * (n % 3) + f" {n}."}])
        for n in range(count)
    ]


def trainer_of(
    folder: Path, policy: Path, method: str, *, rows: int = 6, test: int = 0, **sections: Any
) -> Any:
    """A trainer in a folder of its own; `own` is the section of its method."""
    training: dict[str, Any] = {
        "batch_size": 16,
        "learning_rate": 5e-3,
        "max_steps": 4,
        "epochs": 1000.0,
        "log_every": 1,
    }
    training |= {"schedule": "constant", "warmup_ratio": 0.0, "bf16": False, "save_every": 100}
    own = {"completions_per_prompt": 4, "beta": 0.01, "missing_eos_penalty": 0.0}
    config = RunConfig.from_json(
        {
            "method": method,
            "seed": 3,
            "model": str(policy),
            "rewards": [VOWELS],
            "sampling": {"max_new_tokens": 8},
            "tuning": sections.get("tuning", {}),
            "training": training | sections.get("training", {}),
            method: own | sections.get("own", {}),
        }
    )
    tokenizer, model = loading.load_tokenizer(config.model), loading.load_policy(config.model)
    loading.fit(model, tokenizer, where=config.model)
    return METHODS[method].make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=prompts(rows),
        test=prompts(test),
        config=config,
        run_dir=RunDir(folder),
    )


def fit(folder: Path, trainer: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    fitting.fit(trainer, run_dir=RunDir(folder), progress=ProgressWriter(RunDir(folder)))
    return trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in trainer.model.named_parameters() if one.requires_grad}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_a_policy_learns_what_is_rewarded(method: str, tiny_policy: Path, tmp_path: Path) -> None:
    many = {"batch_size": 32, "max_steps": 30}
    trainer = trainer_of(tmp_path, tiny_policy, method, rows=8, test=2, training=many)
    fit(tmp_path, trainer)
    rewards = logged(trainer, "reward")
    assert len(rewards) == 30
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 1.5  # of 8 letters, two more are vowels
    assert logged(trainer, "kl")[-1] > 1
    told = {name for line in read_jsonl(tmp_path / "progress.jsonl") for name in line["values"]}
    wanted = {"reward", "kl", "eos_rate", "completions/mean_length", "rewards/vowels/mean", "loss"}
    assert wanted <= told
    held_out = trainer.evaluate()
    assert held_out["eval_reward"] > rewards[0]
    assert held_out["eval_kl"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_adapters_learn_too_and_the_base_stays(method: str, tiny_policy: Path, tmp_path: Path) -> None:
    adapters = {"kind": "lora", "lora_rank": 4, "lora_dropout": 0.5}
    trainer = trainer_of(tmp_path, tiny_policy, method, tuning=adapters, training={"max_steps": 8})
    before = weights(trainer)
    base = trainer.model.get_base_model().model.embed_tokens.weight.clone()
    assert {
        module.p for _, module in trainer.model.named_modules() if isinstance(module, torch.nn.Dropout)
    } <= {0.0}
    fit(tmp_path, trainer)
    assert logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-4)  # adapters begin at 0
    assert not same(before, weights(trainer))
    assert torch.equal(base, trainer.model.get_base_model().model.embed_tokens.weight)


@pytest.mark.parametrize("method", METHODS)
def test_kl_is_that_of_a_whole_completion(method: str, tiny_policy: Path, tmp_path: Path) -> None:
    trainer = fit(tmp_path, trainer_of(tmp_path, tiny_policy, method, training={"max_steps": 12}))
    with torch.no_grad():
        batch = [{"prompt": row.prompt} for row in prompts(6)] * 2
        trainer.model.eval()
        trainer._metrics["eval"].clear()
        inputs = trainer._generate_and_score_completions(batch)
        trainer._compute_loss(trainer.model, inputs)
    said = trainer._metrics["eval"]["kl"][0]
    reference = loading.load_policy(str(tiny_policy))
    rows = [one.prompt_ids for one in trainer.drawn], [one.ids for one in trainer.drawn]
    new = completion_logprobs(trainer.model, *rows, pad_id=0)
    old = completion_logprobs(reference, *rows, pad_id=0)
    ratios = [one - other for one, other in zip(new, old, strict=True)]
    if method == "grpo":  # its estimate of the same, never below 0 (http://joschu.net/blog/kl-approx.html)
        ratios = [torch.exp(-one) - 1 + one for one in ratios]
    expected = sum(float(one.sum()) for one in ratios) / len(ratios)
    assert said == pytest.approx(expected, rel=1e-3)
    assert abs(expected) > 0.2


@pytest.mark.parametrize("method", METHODS)
def test_a_cut_completion_loses_the_penalty_and_nothing_else(
    method: str, tiny_policy: Path, tmp_path: Path
) -> None:
    plain = trainer_of(tmp_path / "plain", tiny_policy, method)
    strict = trainer_of(tmp_path / "strict", tiny_policy, method, own={"missing_eos_penalty": 3.0})
    batch = [{"prompt": row.prompt} for row in prompts(4)] * 100
    for trainer in (plain, strict):
        trainer.model.eval()
        with torch.no_grad():
            trainer._generate_and_score_completions(batch)
    assert plain.drawn == strict.drawn
    cut = sum(one.finish == "length" for one in plain.drawn) / len(plain.drawn)
    assert 0 < cut < 1
    of_plain, of_strict = (one._metrics["eval"] for one in (plain, strict))
    assert of_plain["eos_rate"] == [pytest.approx(1 - cut)]
    assert of_strict["reward"][0] == pytest.approx(of_plain["reward"][0] - 3 * cut, abs=1e-5)
    assert of_strict["rewards/vowels/mean"] == of_plain["rewards/vowels/mean"]
    assert of_strict["rewards/missing_eos/mean"] == [pytest.approx(-cut)]


@pytest.mark.parametrize("method", METHODS)
def test_prompts_are_those_of_our_rendering_and_of_trls(
    method: str, tiny_policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, tiny_policy, method)
    asked = [row.prompt for row in prompts(4)]
    ours, _, _ = trainer._tokenize_prompts(asked)
    trls: Any = type(trainer).__mro__[3]
    assert trls.__module__.startswith("trl.")
    theirs, _, _ = trls._tokenize_prompts(trainer, asked)
    assert ours == theirs == [rendering.prompt_ids(trainer.processing_class, one) for one in asked]


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"training": {"batch_size": 8, "gradient_accumulation": 2}},
    "reused": {"own": {"iterations": 3}},
    "lora": {"tuning": {"kind": "lora", "lora_rank": 4}},
}


@pytest.mark.parametrize(
    ("method", "shape"),
    [*itertools.product(METHODS, ["plain", "reused"]), ("grpo", "accumulated"), ("rloo", "lora")],
)
def test_a_run_that_resumes_ends_with_the_weights_of_one_that_ran_through(
    method: str, shape: str, tiny_policy: Path, tmp_path: Path
) -> None:
    """Six prompts at four a step are two steps an epoch: it stops within the second epoch, and again."""
    sections: dict[str, Any] = dict(SHAPES[shape])
    whole = sections.pop("training", {}) | {"max_steps": 9}
    through = fit(
        tmp_path / "whole", trainer_of(tmp_path / "whole", tiny_policy, method, training=whole, **sections)
    )
    folder = tmp_path / "parts"
    for until in (4, 5, 9):
        trainer = trainer_of(folder, tiny_policy, method, training=whole, **sections)
        if until < 9:
            trainer.add_callback(StopAfter(until))
        fit(folder, trainer)
        assert trainer.state.global_step == until
    assert same(weights(trainer), weights(through))
    last = logged(through, "reward")[-1]
    assert logged(trainer, "reward")[-1] == last


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when", ["drawn", "scored", "refused"])
def test_whatever_ends_a_run_between_two_steps_leaves_the_checkpoint_of_the_last(
    when: str, method: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop is heard while texts are drawn and while they are scored; a judge may fall silent."""
    through = fit(tmp_path / "whole", trainer_of(tmp_path / "whole", tiny_policy, method))
    folder = tmp_path / "parts"
    trainer = trainer_of(folder, tiny_policy, method)
    draw, score = sampling._write_on, trainer.rewards.score

    def draw_and_stop(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(progress._Stop, "requested", trainer.state.global_step == 2)
        return draw(*args, **kwargs)

    def score_and_end(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            raise Cancelled if when == "scored" else Refused("The judge does not answer.", "here", "Wake it.")
        return score(*args, **kwargs)

    with monkeypatch.context() as patched:
        if when == "drawn":
            patched.setattr(sampling, "_write_on", draw_and_stop)
        else:
            patched.setattr(trainer.rewards, "score", score_and_end)
        with pytest.raises(Refused if when == "refused" else Cancelled):
            fit(folder, trainer)
    monkeypatch.undo()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert (folder / "checkpoints/checkpoint-2/complete.json").exists()
    resumed = fit(folder, trainer_of(folder, tiny_policy, method))
    assert logged(resumed, "reward")[-2:] == logged(through, "reward")[-2:]
    assert same(weights(resumed), weights(through))


def test_what_is_saved_is_the_policy_that_learnt(tiny_policy: Path, tmp_path: Path) -> None:
    trainer = fit(tmp_path, trainer_of(tmp_path, tiny_policy, "rloo"))
    run_dir = RunDir(tmp_path)
    shutil.rmtree(run_dir.checkpoints, ignore_errors=True)
    config = RunConfig.from_json({"method": "rloo", "model": str(tiny_policy), "rewards": [VOWELS]})
    fitting.save_trained(trainer, trainer.processing_class, run_dir=run_dir, config=config)
    saved, began = (load_file(folder / "model.safetensors") for folder in (run_dir.model, tiny_policy))
    assert saved.keys() == began.keys()
    assert not same(saved, began)
    ends = [
        loading.load_policy(str(folder)).generation_config.eos_token_id
        for folder in (run_dir.model, tiny_policy)
    ]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("rows", "at_once"), [(6, 4), (8, 4), (1, 4), (3, 7)])
def test_every_prompt_is_asked_in_every_epoch_and_every_step_is_full(rows: int, at_once: int) -> None:
    sampler = PromptSampler(rows=rows, completions=3, prompts_at_once=at_once, passes=2, seed=1)
    numbers = list(sampler)
    assert len(numbers) == len(sampler)
    assert set(numbers) == set(range(rows))
    size = at_once * 3
    steps = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    for one, other in zip(steps[::2], steps[1::2], strict=True):
        assert one == other  # a pass again over the same completions
    for step in steps:
        groups = [step[start : start + 3] for start in range(0, size, 3)]
        assert all(len(set(group)) == 1 for group in groups)
    asked = Counter(numbers).values()
    assert max(asked) - min(asked) <= 6  # completions of a step: none is asked twice more than another


def test_prompts_come_in_an_order_of_seed_and_epoch_alone() -> None:
    through = PromptSampler(rows=12, completions=2, prompts_at_once=4, passes=1, seed=1)
    orders = []
    for epoch in range(3):
        through.set_epoch(epoch)
        orders.append(list(through))
    torch.manual_seed(99)
    resumed = PromptSampler(rows=12, completions=2, prompts_at_once=4, passes=1, seed=1)
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]
    assert orders[0] != orders[1] != orders[2]
