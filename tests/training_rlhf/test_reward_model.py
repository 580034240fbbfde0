"""The reward model: equal to TRL on plain pairs, and it learns from rankings beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl.trainer.reward_config import RewardConfig  # noqa: E402
from trl.trainer.reward_trainer import RewardTrainer  # noqa: E402

from tests.training_rlhf.conftest import in_bf16, pair_row, ranking_row, stored_dtypes, write_rows  # noqa: E402
from training.rlhf import fitting, loading, recipe, reward_model, scoring, tuning  # noqa: E402
from training.rlhf.config import RunConfig, Training, Tuning  # noqa: E402
from training.rlhf.data import read_for_reward_model  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402

Rows = list[dict[str, Any]]


def make_config(policy: Path, *, lora: bool = False, **training: Any) -> RunConfig:
    fixed = {"batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "warmup_ratio": 0.0}
    tuned = Tuning(kind="lora", lora_rank=4) if lora else Tuning()
    return RunConfig(
        method="reward_model",
        seed=7,
        model=str(policy),
        tuning=tuned,
        training=Training(**(fixed | training)),
    )


def our_trainer(
    pairs: Rows, config: RunConfig, folder: Path, *, rankings: Rows | None = None
) -> reward_model.ComparisonTrainer:
    run_dir = RunDir(folder)
    write_rows(run_dir.data / "pairs.train.jsonl", pairs)
    write_rows(run_dir.data / "rankings.train.jsonl", rankings or [])
    tokenizer = loading.load_tokenizer(config.model)
    dtype = tuning.loaded_dtype(config)
    model = loading.load_reward_base(config.model, seed=config.seed, dtype=dtype)
    loading.fit(model, tokenizer, where=config.model)
    return reward_model.make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=read_for_reward_model(run_dir, "train"),
        test=[],
        config=config,
        run_dir=run_dir,
    )


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("margin", [0.0, 1.5], ids=["plain", "margin"])
def test_losses_on_pairs_equal_trl_to_five_decimals(
    lora: bool, margin: float, tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [pair_row(number, margin=margin) for number in range(32)]
    config = make_config(tiny_policy, lora=lora)
    ours = our_trainer(rows, config, tmp_path)
    ours.train()
    settings = fitting.settings(config.training, seed=config.seed, output_dir=tmp_path / "trl")
    columns = ("prompt", "chosen", "rejected", *(("margin",) if margin else ()))
    theirs = RewardTrainer(
        model=loading.load_reward_base(config.model, seed=config.seed),
        args=RewardConfig(**settings, save_strategy="no"),
        train_dataset=Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
        processing_class=loading.load_tokenizer(config.model),
        peft_config=tuning.peft_config(config, task="SEQ_CLS"),
    )
    theirs.train()
    assert len(logged(ours)) == 8
    assert logged(ours) == pytest.approx(logged(theirs), abs=5e-6)
    for name in ("accuracy", "margin", "mean_reward"):
        assert logged(ours, name) == pytest.approx(logged(theirs, name), abs=5e-6)


def test_a_ranking_of_two_has_the_loss_of_the_pair_that_says_the_same(
    tiny_policy: Path, tmp_path: Path
) -> None:
    pairs = [pair_row(number) for number in range(8)]
    rankings = [
        {"prompt": row["prompt"], "completions": [row["rejected"], row["chosen"]], "ranks": [2, 1]}
        for row in pairs
    ]
    config = make_config(tiny_policy)
    as_pairs = our_trainer(pairs, config, tmp_path / "pairs")
    as_rankings = our_trainer([], config, tmp_path / "rankings", rankings=rankings)
    as_pairs.train()
    as_rankings.train()
    assert logged(as_rankings) == pytest.approx(logged(as_pairs), abs=5e-6)


def test_pairs_and_rankings_are_learnt_together(tiny_policy: Path, tmp_path: Path) -> None:
    rankings = [ranking_row(number, [1, 2, 2, 3]) for number in range(12)]
    config = make_config(tiny_policy, epochs=12.0)
    trainer = our_trainer([pair_row(n) for n in range(24)], config, tmp_path, rankings=rankings)
    trainer.train()
    assert logged(trainer)[-1] < 0.6 * logged(trainer)[0]
    model: Any = trainer.model
    model.eval()
    tokenizer = loading.load_tokenizer(config.model)
    unseen = ranking_row(99, [1, 2, 2, 3])
    conversations = [[*unseen["prompt"], *completion] for completion in unseen["completions"]]
    scores = scoring.reward_scores(model, tokenizer, conversations)
    assert scores[0] > max(scores[1:3]) > scores[3]


def test_a_ranking_of_four_costs_the_mean_over_its_six_comparisons(tiny_policy: Path, tmp_path: Path) -> None:
    config = make_config(tiny_policy, max_steps=1, batch_size=1)
    trainer = our_trainer([], config, tmp_path, rankings=[ranking_row(5, [4, 1, 3, 2])])
    (batch,) = trainer.get_train_dataloader()
    model: Any = trainer.model
    model.eval()
    with torch.no_grad():
        scores = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        loss = float(trainer.compute_loss(model, batch))
    order = [1, 3, 2, 0]  # from best to worst
    gaps = [scores[one] - scores[other] for i, one in enumerate(order) for other in order[i + 1 :]]
    assert loss == pytest.approx(float(torch.nn.functional.softplus(-torch.stack(gaps)).mean()), abs=1e-6)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_was_saved_scores_as_what_was_trained_and_its_canaries_guard_it(
    kind: str, tiny_policy: Path, tmp_path: Path
) -> None:
    run_dir = RunDir(tmp_path)
    write_rows(run_dir.data / "pairs.train.jsonl", [pair_row(number) for number in range(24)])
    config = make_config(tiny_policy, lora=kind == "lora", epochs=4.0)
    recipe.train(run_dir, config, ProgressWriter(run_dir))

    model, tokenizer = loading.load_reward_model(run_dir.model)  # checks the canaries
    rows = [pair_row(number) for number in range(500, 520)]
    chosen = scoring.reward_scores(model, tokenizer, [[*row["prompt"], *row["chosen"]] for row in rows])
    rejected = scoring.reward_scores(model, tokenizer, [[*row["prompt"], *row["rejected"]] for row in rows])
    assert sum(one > other for one, other in zip(chosen, rejected, strict=True)) >= 18
    assert (run_dir.path / "adapter").exists() == (kind == "lora")
    assert not list(run_dir.model.glob("*.bin"))

    head: Any = model.score
    with torch.no_grad():
        head.weight.mul_(-1)
    model.save_pretrained(run_dir.model)
    with pytest.raises(loading.ModelRefused, match="reward of"):
        loading.load_reward_model(run_dir.model)


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
    model, tokenizer = loading.load_reward_model(run_dir.model)
    assert model.config.dtype == torch.float32  # as loaded
    assert stored_dtypes(run_dir.model) == {torch.bfloat16}
    canaries = json.loads((run_dir.model / scoring.CANARIES).read_text())
    again = scoring.reward_scores(model, tokenizer, scoring._canaries())
    assert again == pytest.approx(canaries["scores"], abs=1e-6)


def test_a_small_rate_moves_every_weight_of_the_head_beside_a_bf16_base(
    tiny_policy: Path, tmp_path: Path
) -> None:
    policy = in_bf16(tiny_policy, tmp_path / "policy")
    config = make_config(policy, lora=True, bf16=True, learning_rate=1e-5, epochs=2.0)
    trainer = our_trainer([pair_row(number) for number in range(32)], config, tmp_path)
    model: Any = trainer.model
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    (head,) = (weight for name, weight in trained.items() if "score" in name)
    before = head.detach().clone()
    trainer.train()
    assert float((head.detach() != before).float().mean()) > 0.95


def test_accumulating_four_small_batches_gives_the_loss_of_one_large_batch(
    tiny_policy: Path, tmp_path: Path
) -> None:
    pairs = [pair_row(number) for number in range(15)]
    rankings = [ranking_row(number, [1, 2, 3]) for number in range(6)]  # with the pairs 8, 8, 2 + 2 + 1
    large = our_trainer(pairs, make_config(tiny_policy, batch_size=8), tmp_path / "1", rankings=rankings)
    config = make_config(tiny_policy, batch_size=2, gradient_accumulation=4)
    small = our_trainer(pairs, config, tmp_path / "4", rankings=rankings)
    large.train()
    small.train()
    assert logged(small) == pytest.approx(logged(large), abs=1e-4)
