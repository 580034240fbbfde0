"""PPO learns from the rewards of what it writes, tells how it goes, and stops where that is of no use."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file

from tests.training_rlhf.conftest import MakeRun, in_bf16, stored_dtypes, write_rows
from training.rlhf import loading, ppo, sampling, scoring
from training.rlhf.config import RunConfig
from training.rlhf.failures import Collapsed, Refused, explain
from training.rlhf.losses.policy_gradient import RunningScale
from training.rlhf.method_settings import ConfigError
from training.rlhf.ppo_parts import ppo_models, ppo_update, rollout
from training.rlhf.ppo_parts.ppo_models import Models
from training.rlhf.rendering import Messages
from training.rlhf.reward_kinds.reward_interface import RewardBatch
from training.rlhf.run_dir import EXIT_CRASHED, ProgressWriter, RunDir, read_jsonl
from training.rlhf.sampling import Sampled

LORA = {"kind": "lora", "lora_rank": 4}
REWARDS = [{"name": "letters", "kind": "regex", "options": {"pattern": "e"}}]


@dataclass
class Letters:
    """The share of a completion's characters that are small letters."""

    value_from: str | None = None

    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
        assert len(prompts) == len(samples)
        found = [sum(one.isascii() and one.islower() for one in sample.text) / 8 for sample in samples]
        return RewardBatch(total=[2 * one for one in found], parts={"letters": found})

    def value_model_folder(self) -> str | None:
        return self.value_from


def ppo_run(make_run: MakeRun, **config: Any) -> RunDir:
    sections: dict[str, dict[str, Any]] = {
        "ppo": {"rollout_size": 16, "epochs": 2, "kl_coefficient": 0.01},
        "training": {"batch_size": 8, "learning_rate": 3e-3, "max_steps": 2, "bf16": False},
        "sampling": {"max_new_tokens": 8},
    }
    for name, values in sections.items():
        config[name] = values | config.get(name, {})
    run_dir = make_run("ppo", rewards=REWARDS, **config)
    prompts = [[{"role": "user", "content": f"Say {number}" + "." * (number % 3)}] for number in range(20)]
    write_rows(run_dir.data / "prompts.train.jsonl", [{"prompt": prompt} for prompt in prompts])
    return run_dir


def train(run_dir: RunDir, rewards: Any = None) -> dict[str, Any]:
    config = RunConfig.load(run_dir.config)
    return ppo.train(run_dir, config, ProgressWriter(run_dir), rewards=rewards or Letters())


def steps_of(run_dir: RunDir) -> list[dict[str, float]]:
    return [line["values"] for line in read_jsonl(run_dir.progress) if "kl" in line["values"]]


def loaded(run_dir: RunDir, value_from: str | None = None) -> tuple[Models, Any, RunConfig]:
    config = RunConfig.load(run_dir.config)
    tokenizer = loading.load_tokenizer(config.model)
    return ppo_models.load(config, tokenizer, value_from=value_from), tokenizer, config


class Ascii(Letters):
    """The share of characters that are ASCII: the tiny policy writes any byte."""

    def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
        found = [sum(map(str.isascii, one.text)) / max(1, len(one.text)) for one in samples]
        return RewardBatch(total=found, parts={"ascii": found})


@pytest.mark.parametrize(("tuning", "rate"), [({"kind": "full"}, 5e-3), (LORA, 2e-2)], ids=["full", "lora"])
def test_the_mean_reward_of_a_policy_rises(
    tuning: dict[str, Any], rate: float, make_run: MakeRun, tmp_path: Path, tiny_policy: Path
) -> None:
    policy = loading.load_policy(str(tiny_policy))
    with torch.no_grad():  # its hidden states make as little difference as those of any random model
        cast(torch.nn.Embedding, policy.get_input_embeddings()).weight.mul_(15)
    shutil.copytree(tiny_policy, tmp_path / "policy")
    policy.save_pretrained(tmp_path / "policy")
    run_dir = ppo_run(
        make_run,
        model=tmp_path / "policy",
        tuning=tuning,
        ppo={"rollout_size": 64, "epochs": 4, "missing_eos_penalty": 0.0},
        training={"max_steps": 6, "batch_size": 16, "learning_rate": rate},
        sampling={"max_new_tokens": 6},
    )
    result = train(run_dir, Ascii())
    rewards = [step["reward/mean"] for step in steps_of(run_dir)]
    assert rewards[0] < 0.4
    assert min(rewards[-2:]) > 0.7
    assert result["steps"] == 6
    assert result["rows"] == {"train": {"kept": 20, "dropped": 0}, "test": {"kept": 2, "dropped": 0}}
    assert result["lineage"]["method"] == "ppo"
    loading.load_policy(str(run_dir.model))
    assert (run_dir.path / "adapter" / "adapter_model.safetensors").exists() is (tuning is LORA)


def test_each_step_tells_how_it_went(make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run, training={"max_steps": 3})
    train(run_dir)
    lines = [line for line in read_jsonl(run_dir.progress) if "kl" in line["values"]]
    assert [line["step"] for line in lines] == [1, 2, 3]
    first = lines[0]["values"]
    assert first.keys() == {
        "reward/mean", "reward/std", "rewards/letters/mean", "kl", "kl_coef", "entropy",
        "objective/rlhf_reward", "policy/approxkl", "policy/clipfrac", "loss/policy", "loss/value",
        "value/explained_variance", "eos_rate", "completion_length", "lr", "grad_norm",
        "time/generation_share",
    }  # fmt: skip
    assert first["kl"] == pytest.approx(0, abs=1e-4)  # it is the reference still
    assert abs(lines[-1]["values"]["kl"]) > 1e-3
    assert 0 < first["entropy"] < 5.6  # the logarithm of its 262 tokens
    assert 1 <= first["completion_length"] <= 8
    assert [line["values"]["lr"] for line in lines] == sorted(
        (line["values"]["lr"] for line in lines), reverse=True
    )


def test_a_completion_that_was_cut_pays_for_its_missing_eos(make_run: MakeRun) -> None:
    models, tokenizer, config = loaded(ppo_run(make_run))
    asked = [[{"role": "user", "content": "Say"}]] * 32
    samples = rollout.draw(models, tokenizer, asked, config=config, seed=1)
    samples = [replace(one, finish="eos" if number % 2 else "length") for number, one in enumerate(samples)]
    readings = rollout.read(models, samples, config=config, pad_id=0)
    parts = {
        penalty: rollout.assemble(
            samples,
            readings,
            RewardBatch(total=[1.0] * 32, parts={}),
            settings=replace(config.ppo, missing_eos_penalty=penalty, normalise_rewards=False),
            kl_coefficient=0.0,
            scale=RunningScale(),
        )[0]
        for penalty in (0.0, 3.0)
    }
    assert parts[0.0].figures["reward/mean"] == 1.0
    assert parts[3.0].figures["reward/mean"] == pytest.approx(-0.5)
    assert parts[3.0].figures["eos_rate"] == pytest.approx(0.5)


@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_a_rollout_is_read_by_the_very_models_at_the_temperature_of_the_draw(
    tuning: dict[str, Any], make_run: MakeRun
) -> None:
    run_dir = ppo_run(make_run, tuning=tuning, sampling={"temperature": 0.7})
    models, tokenizer, config = loaded(run_dir)
    start = loading.load_policy(config.model)
    asked = [[{"role": "user", "content": "Say" + "!" * number}] for number in range(11)]
    with torch.no_grad():
        for name, weight in models.trained.items():  # as if it had learnt
            if name.startswith(("policy", "head")):
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    samples = rollout.draw(models, tokenizer, asked, config=config, seed=1)
    readings = rollout.read(models, samples, config=config, pad_id=0)
    prompts, completions = [one.prompt_ids for one in samples], [one.ids for one in samples]
    with models.role("policy"):
        logps = scoring.completion_logprobs(models.policy, prompts, completions, pad_id=0, temperature=0.7)
    expected = scoring.completion_logprobs(start, prompts, completions, pad_id=0, temperature=0.7)
    for row, sample in enumerate(samples):
        n = sample.tokens
        torch.testing.assert_close(readings.logps[row, :n], logps[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(readings.reference_logps[row, :n], expected[row], atol=1e-4, rtol=1e-4)
        assert readings.mask[row].tolist() == [1.0] * n + [0.0] * (readings.mask.shape[1] - n)
        with torch.no_grad():  # alone, without padding: the state before each token
            hidden = start.base_model(torch.tensor([[*sample.prompt_ids, *sample.ids]])).last_hidden_state
            values = models.head(hidden[0, len(sample.prompt_ids) - 1 : -1])[:, 0]
        torch.testing.assert_close(readings.values[row, :n], values, atol=1e-4, rtol=1e-4)
    assert (readings.logps - readings.reference_logps).abs().max() > 0.1


def test_values_begin_at_0_or_where_the_reward_model_scores(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = ppo_run(make_run)
    models, tokenizer, config = loaded(run_dir)
    assert bool((models.head.weight == 0).all())

    reward = loading.load_reward_base(config.model, seed=7)
    reward.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    models, _, _ = loaded(run_dir, value_from=str(tmp_path / "reward"))
    torch.testing.assert_close(models.head.weight, cast(torch.nn.Linear, reward.score).weight)
    train(run_dir, Letters(value_from=str(tmp_path / "reward")))


def test_a_value_model_with_other_tokens_begins_as_the_policy(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = ppo_run(make_run)
    _, tokenizer, config = loaded(run_dir)
    loading.load_reward_base(config.model, seed=7).save_pretrained(tmp_path)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary["model"]["vocab"] |= {"a": vocabulary["model"]["vocab"]["b"],
                                     "b": vocabulary["model"]["vocab"]["a"]}  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    models, _, _ = loaded(run_dir, value_from=str(tmp_path))
    assert bool((models.head.weight == 0).all())


def test_adapters_keep_one_copy_of_the_base_which_stays_as_it_is(make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run, tuning=LORA)
    models, _, config = loaded(run_dir)
    base = sum(weight.numel() for weight in loading.load_policy(config.model).parameters())
    held = {id(weight): weight.numel() for part in (models.policy, models.body, models.head)
            for weight in part.parameters()}  # fmt: skip
    assert models.reference is None
    assert sum(held.values()) == base + sum(weight.numel() for weight in models.trained.values())

    train(run_dir)
    adapter = load_file(run_dir.path / "adapter" / "adapter_model.safetensors")
    assert not any("value" in name for name in adapter)
    moved = load_file(run_dir.model / "model.safetensors")
    before = load_file(Path(config.model) / "model.safetensors")
    assert torch.equal(moved["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(moved[name], before[name])


def test_the_first_update_sees_ratios_of_1_and_its_gradients_are_clipped(make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run, ppo={"epochs": 1}, training={"batch_size": 16, "max_grad_norm": 1e-9})
    train(run_dir)
    for step in steps_of(run_dir):
        assert step["policy/approxkl"] == pytest.approx(0, abs=1e-9)
        assert step["policy/clipfrac"] == 0
        assert step["grad_norm"] > 1e-3
    moved = load_file(run_dir.model / "model.safetensors")
    before = load_file(Path(RunConfig.load(run_dir.config).model) / "model.safetensors")
    # AdamW takes steps of the size of its rate unless gradients are as small as its epsilon.
    assert max(float((moved[name] - before[name]).abs().max()) for name in moved) < 3e-3 * 0.2


def test_accumulation_and_recomputing_change_no_update(make_run: MakeRun) -> None:
    told = []
    for training in (
        {"batch_size": 16},
        {"batch_size": 4, "gradient_accumulation": 4},
        {"batch_size": 16, "gradient_checkpointing": True},
    ):
        run_dir = ppo_run(make_run, training=training)
        train(run_dir)
        told.append(steps_of(run_dir)[0])
    for other in told[1:]:
        for name in ("loss/policy", "loss/value", "grad_norm", "policy/approxkl"):
            assert other[name] == pytest.approx(told[0][name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("grouped", [False, True])
def test_each_epoch_over_a_rollout_reads_every_completion_once(grouped: bool, make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run, training={"batch_size": 3, "group_by_length": grouped})
    config = RunConfig.load(run_dir.config)
    tensor = torch.zeros(16, 1)
    drawn = rollout.Rollout(
        prompts=[[1] * (1 + number * 7 % 5) for number in range(16)],
        completions=[[2]] * 16,
        mask=tensor, logps=tensor, values=tensor, advantages=tensor, returns=tensor,
        figures={},
    )  # fmt: skip
    assert ppo_update.an_epoch(config) == 6
    read = [ppo_update.rows_of(drawn, config, step=2, number=number) for number in range(12)]
    epochs = [[row for rows in read[start : start + 6] for row in rows] for start in (0, 6)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    spread = [len({len(drawn.prompts[row]) for row in rows}) for rows in read]
    assert (max(spread) <= 2) is grouped


def test_a_weight_on_entropy_keeps_the_policy_undecided(make_run: MakeRun) -> None:
    class Nothing(Letters):
        def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
            return RewardBatch([0.0] * len(samples), {})

    entropies = {}
    for weight in (0.0, 1.0):
        run_dir = ppo_run(
            make_run,
            ppo={"entropy_weight": weight, "kl_coefficient": 0.0, "missing_eos_penalty": 0.0},
            training={"max_steps": 4, "learning_rate": 1e-3},
        )
        train(run_dir, Nothing())
        entropies[weight] = [step["entropy"] for step in steps_of(run_dir)]
    assert entropies[0.0][-1] == pytest.approx(entropies[0.0][0], abs=1e-3)  # nothing to learn
    assert entropies[1.0][-1] > entropies[1.0][0] + 1e-3


def test_prompts_are_shuffled_each_epoch_and_none_is_left_out(make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run, training={"max_steps": -1, "epochs": 4.0})
    models, tokenizer, config = loaded(run_dir)
    prompts: list[Any] = [[{"role": "user", "content": str(number)}] for number in range(20)]
    loop = ppo.Loop(
        run_dir, config, ProgressWriter(run_dir),
        models=models, tokenizer=tokenizer, prompts=prompts, rewards=Letters(),
    )  # fmt: skip
    assert loop.steps == 5  # of 16 prompts: 4 epochs of 20
    asked = [number for step in range(5) for number in loop.prompt_order(step)]
    epochs = [asked[start : start + 20] for start in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_prompts_that_are_too_long_or_odd_are_left_out_and_counted(make_run: MakeRun) -> None:
    run_dir = ppo_run(make_run, training={"max_length": 30})
    rows = [{"prompt": [{"role": "user", "content": "x" * length}]} for length in (5, 15, 22, 400)]
    write_rows(run_dir.data / "prompts.train.jsonl", rows)
    assert train(run_dir)["rows"]["train"] == {"kept": 2, "dropped": 2}  # 8 are left for the answer
    write_rows(run_dir.data / "prompts.train.jsonl", rows[2:])
    with pytest.raises(Refused, match="No prompt is left"):
        train(run_dir)
    write_rows(run_dir.data / "prompts.train.jsonl", [])
    with pytest.raises(Refused, match="There is no prompt"):
        train(run_dir)


@pytest.mark.parametrize("sampled", [{"top_p": 0.9}, {"temperature": 0}])
def test_a_distribution_that_is_not_the_policys_own_is_refused(
    sampled: dict[str, Any], make_run: MakeRun
) -> None:
    with pytest.raises(ConfigError, match="own distribution"):
        train(ppo_run(make_run, sampling=sampled))


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"most_kl": 0.001}, "above most_kl"),
        ({"least_entropy": 5.4}, "below least_entropy"),
        ({"least_eos_rate": 0.9}, "below least_eos_rate"),
    ],
    ids=["kl", "entropy", "eos"],
)
def test_a_run_that_leaves_its_bounds_stops_and_says_why(
    bounds: dict[str, float], words: str, make_run: MakeRun
) -> None:
    run_dir = ppo_run(make_run, ppo=bounds, training={"max_steps": 30, "save_every": 1})
    with pytest.raises(Collapsed) as caught:
        train(run_dir)
    error, code = explain(caught.value, run_dir=run_dir)
    assert code == EXIT_CRASHED
    assert words in error["what"]
    assert error["where"] == f"step {caught.value.step}"
    assert "lower learning rate" in error["do"]
    assert not run_dir.model.exists()
    kept = run_dir.last_checkpoint()
    assert kept == caught.value.kept
    assert (f"{kept.name} is kept" if kept else "No checkpoint was saved before") in error["do"]
    # The policy that was found collapsed is not what is kept.
    assert kept is None or int(kept.name.rpartition("-")[2]) < caught.value.step


def test_a_loss_that_is_no_number_ends_the_run_before_it_moves_a_weight(make_run: MakeRun) -> None:
    class Broken(Letters):
        calls = 0

        def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
            self.calls += 1
            found = super().score(prompts, samples)
            return found if self.calls < 3 else RewardBatch([float("nan")] * len(samples), found.parts)

    run_dir = ppo_run(make_run, training={"max_steps": 5, "save_every": 1})
    with pytest.raises(Collapsed, match="reward/mean is no number"):
        train(run_dir, Broken())
    assert run_dir.last_checkpoint() == run_dir.checkpoints / "checkpoint-1"


def test_weights_that_are_no_numbers_are_never_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = ppo.Loop.update

    def overflowing(self: ppo.Loop, drawn: rollout.Rollout, *, number: int) -> list[float]:
        noted = update(self, drawn, number=number)
        if self.state.step == 2:
            next(iter(self.models.trained.values())).data[0] = torch.inf
        return noted

    monkeypatch.setattr(ppo.Loop, "update", overflowing)
    run_dir = ppo_run(
        make_run, ppo={"epochs": 1}, training={"max_steps": 4, "save_every": 1, "batch_size": 16}
    )
    with pytest.raises(Collapsed, match="weights are no numbers") as caught:
        train(run_dir)
    assert caught.value.kept == run_dir.last_checkpoint() == run_dir.checkpoints / "checkpoint-2"
    assert not run_dir.model.exists()


def test_weights_are_stored_in_the_numbers_of_the_model_that_it_began_as(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    stored = in_bf16(tiny_policy, tmp_path / "bf16")
    for tuning in ({"kind": "full"}, LORA):
        run_dir = ppo_run(make_run, model=stored, tuning=tuning, training={"bf16": True, "max_steps": 1})
        train(run_dir)
        assert stored_dtypes(run_dir.model) == {torch.bfloat16}
        (step,) = steps_of(run_dir)
        assert step["kl"] == pytest.approx(0, abs=1e-3)  # the reference reads as the policy does
        assert step["policy/approxkl"] < 0.1


def test_completions_are_drawn_anew_each_step(make_run: MakeRun) -> None:
    seen: list[list[str]] = []

    class Noting(Letters):
        def score(self, prompts: Sequence[Messages], samples: Sequence[Sampled]) -> RewardBatch:
            seen.append([one.text for one in samples])
            return super().score(prompts, samples)

    run_dir = ppo_run(make_run, training={"learning_rate": 1e-12, "max_steps": 3})
    train(run_dir, Noting())
    assert len({tuple(texts) for texts in seen}) == 3
    assert sampling.policy_seed(0, 0) != sampling.policy_seed(0, 1000)
