"""DPO: equal to TRL where nothing more was said, and different where it was."""

import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import FalconConfig, FalconForCausalLM, OPTConfig, OPTForCausalLM  # noqa: E402
from trl.trainer.dpo_config import DPOConfig  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

from tests.training_rlhf.conftest import in_bf16, pair_row, stored_dtypes, write_rows  # noqa: E402
from training.rlhf import dpo, fitting, loading, recipe, tuning  # noqa: E402
from training.rlhf.config import RunConfig, Training, Tuning  # noqa: E402
from training.rlhf.data import read_for_dpo, read_pairs  # noqa: E402
from training.rlhf.failures import Diverged, explain  # noqa: E402
from training.rlhf.method_settings import Dpo  # noqa: E402
from training.rlhf.run_dir import EXIT_CRASHED, ProgressWriter, RunDir  # noqa: E402

Rows = list[dict[str, Any]]
OWN = [item.name for item in fields(Dpo)]


def make_config(policy: Path, *, lora: bool = False, lora_dropout: float = 0.0, **training: Any) -> RunConfig:
    fixed = {"batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "warmup_ratio": 0.0}
    own = {name: training.pop(name) for name in OWN if name in training}
    tuned = Tuning(kind="lora", lora_rank=4, lora_dropout=lora_dropout) if lora else Tuning()
    return RunConfig(
        method="dpo",
        seed=7,
        model=str(policy),
        tuning=tuned,
        training=Training(**(fixed | training)),
        dpo=Dpo(**own),
    )


def our_trainer(rows: Rows, config: RunConfig, folder: Path) -> dpo.PairTrainer:
    run_dir = RunDir(folder)
    write_rows(run_dir.data / "pairs.train.jsonl", rows)
    tokenizer, model = loading.load_tokenizer(config.model), loading.load_policy(config.model)
    loading.fit(model, tokenizer, where=config.model)
    return dpo.make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=read_for_dpo(run_dir, "train"),
        test=[],
        config=config,
        run_dir=run_dir,
    )


def our_losses(rows: Rows, config: RunConfig, folder: Path) -> list[float]:
    trainer = our_trainer(rows, config, folder)
    trainer.train()
    return logged(trainer)


def trl_losses(rows: Rows, config: RunConfig, folder: Path, **arguments: Any) -> list[float]:
    """A bare TRL script over the same rows."""
    settings = fitting.settings(config.training, seed=config.seed, output_dir=folder / "trl")
    columns = ("prompt", "chosen", "rejected")
    trainer = DPOTrainer(
        model=loading.load_policy(config.model),
        args=DPOConfig(**settings, beta=config.dpo.beta, save_strategy="no", **arguments),
        train_dataset=Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
        processing_class=loading.load_tokenizer(config.model),
        peft_config=tuning.peft_config(config, task="CAUSAL_LM"),
    )
    trainer.train()
    return logged(trainer)


def logged(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_losses_equal_trl_to_five_decimals_where_nothing_more_was_said(
    lora: bool, tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [pair_row(number) for number in range(32)]
    config = make_config(tiny_policy, lora=lora, epochs=2.0)
    ours, theirs = our_losses(rows, config, tmp_path), trl_losses(rows, config, tmp_path)
    assert len(ours) == 16
    assert ours == pytest.approx(theirs, abs=5e-6)
    assert ours[-1] < ours[0]


def test_with_an_sft_term_losses_equal_trl_with_its_sft_loss(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [pair_row(number) for number in range(16)]
    config = make_config(tiny_policy, sft_weight=0.5)
    ours = our_losses(rows, config, tmp_path)
    theirs = trl_losses(rows, config, tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    assert ours == pytest.approx(theirs, abs=5e-6)


def test_accumulating_four_small_batches_gives_the_loss_of_one_large_batch(
    tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [pair_row(number, margin=number % 3, weight=1.0) for number in range(21)]  # 8, 8, 2 + 2 + 1
    large = our_losses(rows, make_config(tiny_policy, batch_size=8), tmp_path / "large")
    small = make_config(tiny_policy, batch_size=2, gradient_accumulation=4)
    assert our_losses(rows, small, tmp_path / "small") == pytest.approx(large, abs=1e-4)


def first_loss(rows: Rows, tiny_policy: Path, folder: Path, **training: Any) -> float:
    """Before the first step the policy is its own reference: every difference is 0."""
    return our_losses(rows, make_config(tiny_policy, max_steps=1, **training), folder)[0]


def test_margin_weight_and_tie_enter_the_loss(tiny_policy: Path, tmp_path: Path) -> None:
    def softplus(value: float) -> float:
        return float(torch.nn.functional.softplus(torch.tensor(value)))

    rows = [pair_row(number, margin=2.0) for number in range(4)]
    assert first_loss(rows, tiny_policy, tmp_path / "margin") == pytest.approx(softplus(2.0), abs=1e-5)
    without = first_loss(rows, tiny_policy, tmp_path / "without", use_margin=False)
    assert without == pytest.approx(softplus(0.0), abs=1e-5)
    rows = [pair_row(number, weight=0.25) for number in range(4)]
    assert first_loss(rows, tiny_policy, tmp_path / "weight") == pytest.approx(softplus(0.0) / 4, abs=1e-5)


def test_a_ranking_of_four_is_imitated_as_much_as_one_pair(tiny_policy: Path, tmp_path: Path) -> None:
    """Its six pairs have a weight of 1/6 each, and here they all say the same."""
    imitating: dict[str, Any] = {"sft_weight": 1.0, "batch_size": 6}
    one = first_loss([pair_row(3)], tiny_policy, tmp_path / "pair", **imitating)
    six = [pair_row(3, weight=1 / 6) for _ in range(6)]
    assert first_loss(six, tiny_policy, tmp_path / "six", **imitating) == pytest.approx(one / 6, abs=1e-5)
    assert one > 2  # a random policy: the term is most of the loss


@pytest.mark.parametrize("kind", ["opt", "falcon"])
def test_a_policy_is_its_own_reference_whatever_its_dropout_is_made_of(
    kind: str, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_policy, tmp_path / "policy")
    vocabulary = len(loading.load_tokenizer(str(tiny_policy)))
    torch.manual_seed(0)
    model: Any
    if kind == "opt":
        model = OPTForCausalLM(
            OPTConfig(
                vocab_size=vocabulary, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64,
                num_hidden_layers=2, num_attention_heads=2, dropout=0.5, attention_dropout=0.5,
            )
        )  # fmt: skip
    else:
        model = FalconForCausalLM(
            FalconConfig(
                vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                hidden_dropout=0.5, attention_dropout=0.5,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    rows = [pair_row(number) for number in range(8)]
    assert first_loss(rows, folder, tmp_path / "run") == pytest.approx(math.log(2), abs=1e-5)


def test_dropout_of_adapters_acts_in_training_and_nowhere_else(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [pair_row(number) for number in range(16)]
    still, noisy = (
        our_trainer(rows, make_config(tiny_policy, lora=True, lora_dropout=p), tmp_path / str(p))
        for p in (0.0, 0.5)
    )
    references: list[Any] = [trainer.train_dataset for trainer in (still, noisy)]
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert list(references[0][name]) == list(references[1][name])
    still.train()
    noisy.train()
    assert logged(noisy)[0] == pytest.approx(math.log(2), abs=1e-5)  # adapters begin at 0
    assert abs(logged(noisy)[-1] - logged(still)[-1]) > 1e-3
    rows_again = references[1].remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    held_out = [noisy.evaluate(rows_again)["eval_loss"] for _ in range(2)]
    assert held_out[0] == held_out[1]


def test_ties_alone_leave_the_policy_where_it_is(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [pair_row(number, p=0.5) for number in range(8)]
    trainer = our_trainer(rows, make_config(tiny_policy), tmp_path)
    model: Any = trainer.model
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer.train()
    moved = max(
        float((one - other.detach()).abs().max())
        for one, other in zip(before, model.parameters(), strict=True)
    )
    assert moved < 1e-3  # two steps of Adam at 1e-3 move further than that once there is a gradient
    assert "rewards/accuracies" not in trainer.state.log_history[0]


def test_tokens_are_split_where_both_conversations_go_on_differently(
    tiny_policy: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "pairs.jsonl", [pair_row(1)])
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    (row,) = dpo.tokenized(read_pairs(tmp_path / "pairs.jsonl"), tokenizer, use_margin=True)
    assert tokenizer.decode(row["prompt_ids"]) == "<|bos|><|user|>Say hello, 1.<|end|><|assistant|>"
    assert str(tokenizer.decode(row["chosen_ids"])).startswith("Hello ")
    assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id


def test_the_usual_recipe_for_large_policies_learns_too(tiny_policy: Path, tmp_path: Path) -> None:
    """LoRA on a bf16 base, with gradient checkpointing and accumulation."""
    config = make_config(
        in_bf16(tiny_policy, tmp_path / "policy"),
        lora=True,
        epochs=6.0,
        bf16=True,
        gradient_checkpointing=True,
        gradient_accumulation=2,
        learning_rate=5e-3,
    )
    run_dir = RunDir(tmp_path)
    write_rows(run_dir.data / "pairs.train.jsonl", [pair_row(number) for number in range(32)])
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    losses = [line["values"]["loss"] for line in run_dir.progress_after(0) if "loss" in line["values"]]
    assert losses[-1] < 0.7 * losses[0]
    assert stored_dtypes(run_dir.model) == {torch.bfloat16}  # as its base is stored, and as large
    assert stored_dtypes(run_dir.path / "adapter") == {torch.float32}
    next_round = make_config(run_dir.model, lora=True, bf16=True)
    assert tuning.loaded_dtype(next_round) == torch.bfloat16


def test_a_small_update_of_all_weights_survives_being_stored_in_bf16(
    tiny_policy: Path, tmp_path: Path
) -> None:
    policy = in_bf16(tiny_policy, tmp_path / "policy")
    run_dir = RunDir(tmp_path)
    write_rows(run_dir.data / "pairs.train.jsonl", [pair_row(number) for number in range(8)])
    recipe.train(run_dir, make_config(policy, learning_rate=1e-6), ProgressWriter(run_dir))
    assert stored_dtypes(policy) == stored_dtypes(run_dir.model) == {torch.bfloat16}
    before, after = load_file(policy / "model.safetensors"), load_file(run_dir.model / "model.safetensors")
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items())


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_rounding_by_chance_is_right_on_average_and_leaves_alone_what_fits(
    dtype: torch.dtype, step: float
) -> None:
    def rounded(value: float, *, seed: int = 1) -> torch.Tensor:
        model = torch.nn.Linear(300, 300, bias=False)
        torch.nn.init.constant_(model.weight, value)
        tuning.round_by_chance(model, dtype, seed=seed)
        return model.weight.detach()

    for sign in (1.0, -1.0):
        weights = rounded(sign * (1 + step / 10))  # to the nearest all would be 1
        assert weights.dtype == dtype
        assert set(weights.float().abs().flatten().tolist()) == {1.0, 1.0 + step}
        assert float(weights.double().mean()) == pytest.approx(sign * (1 + step / 10), abs=step / 100)
    assert bool((rounded(-1 - 3 * step).float() == -1 - 3 * step).all())
    assert torch.equal(rounded(1 + step / 2), rounded(1 + step / 2))
    assert not torch.equal(rounded(1 + step / 2), rounded(1 + step / 2, seed=2))


def test_a_run_that_died_after_its_last_step_only_saves_again(tiny_policy: Path, tmp_path: Path) -> None:
    config = make_config(tiny_policy, lora=True, max_steps=5)  # within an epoch
    run_dir = RunDir(tmp_path)
    write_rows(run_dir.data / "pairs.train.jsonl", [pair_row(number) for number in range(32)])
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    trained = (run_dir.model / "model.safetensors").read_bytes()
    lines = len(list(run_dir.progress_after(0)))

    again = recipe.train(run_dir, config, ProgressWriter(run_dir))
    assert (run_dir.model / "model.safetensors").read_bytes() == trained
    assert again["steps"] == 5
    assert not any("loss" in line["values"] for line in run_dir.progress_after(lines))


@pytest.mark.parametrize("log_every", [1, 7])
def test_a_loss_that_is_no_number_ends_the_run_and_is_nowhere_gone_on_from(
    log_every: int, tiny_policy: Path, tmp_path: Path
) -> None:
    config = make_config(
        tiny_policy,
        learning_rate=0.99,
        max_grad_norm=1e30,
        epochs=20.0,
        log_every=log_every,
        save_every=2,
    )
    run_dir = RunDir(tmp_path)
    rows = [pair_row(number, weight=1e30) for number in range(32)]
    write_rows(run_dir.data / "pairs.train.jsonl", rows)
    with pytest.raises(Diverged) as diverged:
        recipe.train(run_dir, config, ProgressWriter(run_dir))
    explained, code = explain(diverged.value, run_dir=run_dir)
    assert code == EXIT_CRASHED
    assert "lower learning rate" in explained["do"]
    for weights in run_dir.checkpoints.glob("*/model.safetensors"):
        assert all(bool(torch.isfinite(weight).all()) for weight in load_file(weights).values())
    assert not run_dir.model.exists()
