"""A reward model that learns from ratings and whole rankings: alone, together, and what it keeps of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from tests.training_rlhf.conftest import (  # noqa: E402
    MakeRun,
    pair_row,
    ranking_row,
    rating_row,
    write_rows,
)
from training.rlhf import evaluation, loading, rating_head, recipe, reward_model, scoring  # noqa: E402
from training.rlhf.config import RunConfig, Training  # noqa: E402
from training.rlhf.method_settings import RewardLearning  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402

Rows = list[dict[str, Any]]
FAST: dict[str, Any] = {"epochs": 6.0, "learning_rate": 3e-3}


def trained(run_dir: RunDir) -> float:
    """Train and say in which share of unseen pairs the model prefers what people would."""
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))
    model, tokenizer = loading.load_reward_model(run_dir.model)
    rows = [pair_row(number) for number in range(3000, 3040)]
    chosen, rejected = (
        scoring.reward_scores(model, tokenizer, [[*row["prompt"], *row[side]] for row in rows])
        for side in ("chosen", "rejected")
    )
    return sum(one > other for one, other in zip(chosen, rejected, strict=True)) / len(rows)


@pytest.mark.parametrize("loss", ["ordinal", "regression"])
def test_ratings_alone_teach_which_of_two_unseen_completions_is_better(loss: str, make_run: MakeRun) -> None:
    learning = {"rating_loss": loss}
    run_dir = make_run("reward_model", pairs=0, ratings=60, training=FAST, reward_learning=learning)
    assert trained(run_dir) > 0.9
    head = rating_head.load(run_dir.model)
    assert head is not None and head.kind == loss
    low, high = head.expected(torch.tensor([-2.0, 2.0])).tolist()
    assert 1 <= low < 3 < high <= 5


def test_all_tables_together_teach_it_too(make_run: MakeRun) -> None:
    run_dir = make_run("reward_model", pairs=24, rankings=12, ratings=24, training=FAST)
    assert trained(run_dir) > 0.9
    names = load_file(run_dir.model / "model.safetensors").keys()
    assert not [name for name in names if "rating_head" in name]
    lines = [line["values"] for line in run_dir.progress_after(0)]
    seen = [one["rating_loss"] for one in lines if "rating_loss" in one]
    assert seen[-1] < seen[0]
    assert any("eval_rating_loss" in one for one in lines)
    config = RunConfig.load(run_dir.config)
    found = evaluation.evaluate_reward_model(run_dir, config, ProgressWriter(run_dir))
    ratings = found["ratings"]
    assert found["accuracy"] > 0.9 and ratings["spearman"] > 0.6 and ratings["n"] == 4
    assert ratings["acceptable"]["f1"] == 1 and ratings["mae"] < ratings["mae_of_median"]


def test_what_lora_trained_has_its_head_beside_it_and_not_among_its_weights(make_run: MakeRun) -> None:
    tuning = {"kind": "lora", "lora_rank": 4}
    run_dir = make_run(
        "reward_model", pairs=0, ratings=60, tuning=tuning, training=FAST | {"learning_rate": 1e-2}
    )
    assert trained(run_dir) > 0.9
    for folder in (run_dir.model, run_dir.path / "adapter"):
        (file,) = folder.glob("*.safetensors")
        assert not [name for name in load_file(file) if "rating_head" in name]
    (last, *_) = run_dir.checkpoints.glob("checkpoint-*")
    assert (last / rating_head.FILE).exists()


@pytest.mark.parametrize("kind", ["head", "freeze", "bottleneck", "prefix", "prompt"])
def test_ratings_are_learnt_with_other_kinds_of_tuning_too(kind: str, make_run: MakeRun) -> None:
    run_dir = make_run(
        "reward_model", pairs=4, ratings=8, tuning={"kind": kind}, training={"max_steps": 2, "save_every": 1}
    )
    config = RunConfig.load(run_dir.config)
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    head = (run_dir.model / rating_head.FILE).read_bytes()
    files = [load_file(path) for path in run_dir.model.rglob("*.safetensors")]
    assert files and not [name for file in files for name in file if "rating_head" in name]
    loading.load_reward_model(run_dir.model)
    shutil.rmtree(run_dir.checkpoints / "checkpoint-2")
    recipe.train(run_dir, config, ProgressWriter(run_dir))  # goes on from the first step
    assert (run_dir.model / rating_head.FILE).read_bytes() == head


def test_cut_points_learn_and_stay_in_order(make_run: MakeRun) -> None:
    run_dir = make_run("reward_model", pairs=0, ratings=60, training=FAST)
    config = RunConfig.load(run_dir.config)
    rated = reward_model.tables(run_dir, config, "train")["ratings"]
    before = rating_head.start("ordinal", rated, scale=[1, 2, 3, 4, 5], model=config.model)
    trained(run_dir)
    found = json.loads((run_dir.model / rating_head.FILE).read_text())
    assert found["scale"] == [1, 2, 3, 4, 5] and found["acceptable_from"] == 4
    assert found["cut_points"] == sorted(found["cut_points"])
    assert found["cut_points"] != pytest.approx(before.to_json()["cut_points"], abs=1e-2)


def test_training_goes_on_from_the_head_of_the_model_it_starts_from(make_run: MakeRun) -> None:
    first = make_run("reward_model", pairs=0, ratings=60, training=FAST)
    trained(first)
    kept = rating_head.load(first.model)
    rated = reward_model.tables(first, RunConfig.load(first.config), "train")["ratings"]
    again = rating_head.start("ordinal", rated, scale=[1, 2, 3, 4, 5], model=str(first.model))
    other = rating_head.start("ordinal", rated, scale=[0, 1, 2, 3, 4, 5], model=str(first.model))
    assert kept is not None and again.to_json() == kept.to_json() != other.to_json()


def trainer_of(
    folder: Path, policy: Path, rows: list[Any], *, training: dict[str, Any] | None = None, **learning: Any
) -> Any:
    fixed = {"batch_size": 8, "log_every": 1, "learning_rate": 1e-3, "warmup_ratio": 0.0}
    config = RunConfig(
        method="reward_model",
        seed=7,
        model=str(policy),
        training=Training(**fixed | (training or {})),
        reward_learning=RewardLearning(**learning),
    )
    tokenizer, model = loading.load_tokenizer(str(policy)), loading.load_reward_base(str(policy), seed=7)
    loading.fit(model, tokenizer, where="")
    return reward_model.make_trainer(
        model=model, tokenizer=tokenizer, train=rows, test=[], config=config, run_dir=RunDir(folder)
    )


def rows_of(folder: Path, **rows: Rows) -> list[Any]:
    run_dir = RunDir(folder)
    for table, given in rows.items():
        write_rows(run_dir.data / f"{table}.train.jsonl", given)
    found = reward_model.tables(run_dir, RunConfig(method="reward_model", model="m"), "train")
    return [row for table in found.values() for row in table]


def test_a_mixed_batch_costs_the_sum_of_its_parts_over_its_elements(
    tiny_policy: Path, tmp_path: Path
) -> None:
    """The cost of a rating is added by hand to that of the rest; a criterion counts for its share."""
    pairs, rankings = [pair_row(1)], [ranking_row(2, [1, 3, 2])]
    two_criteria = [rating_row(4, criterion=name, rating=rating) for name, rating in (("a", 1), ("b", 3))]
    ratings = [rating_row(3, rating=5, weight=0.5), *two_criteria]
    rows = rows_of(tmp_path, pairs=pairs, rankings=rankings, ratings=ratings)
    assert [row.table for row in rows] == ["pairs", "rankings", "ratings", "ratings"]
    trainer = trainer_of(tmp_path / "all", tiny_policy, rows, rating_weight=2.0)
    without = trainer_of(tmp_path / "some", tiny_policy, rows[:2])
    trainer.model.eval(), without.model.eval()
    (batch,), (other) = trainer.get_train_dataloader(), next(iter(without.get_train_dataloader()))
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, batch))
        rest = float(without.compute_loss(without.model, other)) * 2  # elements
        model, tokenizer = trainer.model, loading.load_tokenizer(str(tiny_policy))
        one, two = scoring.reward_scores(
            model, tokenizer, [rows[2].conversations()[0], rows[3].conversations()[0]]
        )
        # Seen are 1, 3 and 5, once each.
        lower, upper = trainer.head.cut_points.tolist()
    sigmoid = torch.sigmoid(torch.tensor([one - upper, lower - two, upper - two, lower - two])).tolist()
    likelihoods = [sigmoid[0], sigmoid[1], sigmoid[2] - sigmoid[3]]
    costs = [-float(torch.tensor(value).log()) for value in likelihoods]
    by_hand = rest + 2.0 * (0.5 * costs[0] + (costs[1] + costs[2]) / 2)
    assert loss == pytest.approx(by_hand / 4, abs=1e-5)


@pytest.mark.parametrize("ranks", [[2, 1], [1, 2]])
def test_a_whole_ranking_of_two_is_learnt_as_the_pair(
    ranks: list[int], tiny_policy: Path, tmp_path: Path
) -> None:
    sides = ("rejected", "chosen") if ranks == [2, 1] else ("chosen", "rejected")
    pairs = [pair_row(number) for number in range(16)]
    rankings = [
        {"prompt": row["prompt"], "completions": [row[side] for side in sides], "ranks": ranks}
        for row in pairs
    ]
    as_pairs = trainer_of(tmp_path / "1", tiny_policy, rows_of(tmp_path / "a", pairs=pairs))
    as_rankings = trainer_of(
        tmp_path / "2", tiny_policy, rows_of(tmp_path / "b", rankings=rankings), ranking_loss="plackett_luce"
    )
    losses = []
    for trainer in (as_pairs, as_rankings):
        trainer.train()
        losses.append(
            [(line["loss"], line["accuracy"]) for line in trainer.state.log_history if "loss" in line]
        )
    assert len(losses[0]) == 2
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, abs=5e-6)


def test_accumulating_small_mixed_batches_gives_the_loss_of_one_large_batch(
    tiny_policy: Path, tmp_path: Path
) -> None:
    rows = rows_of(
        tmp_path / "rows",
        pairs=[pair_row(number) for number in range(7)],
        rankings=[ranking_row(number, [1, 2, 3]) for number in range(5)],
        ratings=[rating_row(number) for number in range(9)],
    )
    losses: list[list[float]] = []
    for batch in ({"batch_size": 8}, {"batch_size": 2, "gradient_accumulation": 4}):
        trainer = trainer_of(tmp_path / str(len(losses)), tiny_policy, rows, training=batch)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 3  # 21 elements
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_whole_rankings_of_any_length_are_learnt(make_run: MakeRun) -> None:
    run_dir = make_run(
        "reward_model", pairs=0, training=FAST, reward_learning={"ranking_loss": "plackett_luce"}
    )
    orders = ([1, 2, 2, 3], [1, 2], [1, 1, 2], [1, 2, 3])
    rows = [ranking_row(number, orders[number % 4]) for number in range(32)]
    write_rows(run_dir.data / "rankings.train.jsonl", rows)
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))
    lines = [line["values"] for line in run_dir.progress_after(0) if "loss" in line["values"]]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["accuracy"] > 0.9


def test_ratings_of_weight_zero_are_left_out(make_run: MakeRun) -> None:
    run_dir = make_run("reward_model", pairs=4, ratings=10, reward_learning={"rating_weight": 0.0})
    assert reward_model.tables(run_dir, RunConfig.load(run_dir.config), "train")["ratings"] == []
