"""DPO's other losses: TRL's own where nothing more was said, and what a margin or a doubt changes."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl.trainer.dpo_config import DPOConfig  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

from tests.training_rlhf.conftest import pair_row, write_rows  # noqa: E402
from tests.training_rlhf.learning import (  # noqa: E402
    Rows,
    assert_resumes_bit_exactly,
    curve,
    make_config,
    trl_settings,
)
from training.rlhf import dpo, fitting, loading  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig  # noqa: E402
from training.rlhf.data import read_for_dpo  # noqa: E402
from training.rlhf.losses.preference_loss import comparison_loss, hinge_loss, ipo_loss, robust_loss  # noqa: E402
from training.rlhf.method_settings import Dpo  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402

LOSSES: dict[str, dict[str, Any]] = {
    "ipo": {"loss": "ipo", "beta": 0.5},
    "hinge": {"loss": "hinge", "beta": 0.2},
    "robust": {"loss": "robust", "beta": 0.3, "label_smoothing": 0.1},
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def recipe_of(name: str, policy: Path, **training: Any) -> RunConfig:
    return make_config("dpo", policy, sections={"dpo": Dpo(**LOSSES[name])}, **training)


def trainer_of(rows: Rows, config: RunConfig, folder: Path) -> dpo.PairTrainer:
    run_dir = RunDir(folder)
    write_rows(run_dir.data / "pairs.train.jsonl", rows)
    tokenizer, model = loading.load_tokenizer(config.model), loading.load_policy(config.model)
    loading.fit(model, tokenizer, where=config.model)
    train = read_for_dpo(run_dir, "train")
    return dpo.make_trainer(
        model=model, tokenizer=tokenizer, train=train, test=[], config=config, run_dir=run_dir
    )


def trained(rows: Rows, config: RunConfig, folder: Path) -> dpo.PairTrainer:
    trainer = trainer_of(rows, config, folder)
    fitting.fit(trainer, run_dir=RunDir(folder), progress=ProgressWriter(RunDir(folder)))
    return trainer


@each_loss
def test_losses_equal_trl_to_five_decimals_where_nothing_more_was_said(
    name: str, tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [pair_row(number) for number in range(32)]
    config = recipe_of(name, tiny_policy, epochs=2.0)
    ours = trained(rows, config, tmp_path)
    arguments: dict[str, Any] = {
        "loss_type": [name],
        "beta": config.dpo.beta,
        "label_smoothing": config.dpo.label_smoothing,
    }
    columns = ("prompt", "chosen", "rejected")
    theirs = DPOTrainer(
        model=loading.load_policy(config.model),
        args=DPOConfig(**trl_settings(config, tmp_path), **arguments),
        train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in rows]),
        processing_class=loading.load_tokenizer(config.model),
    )
    theirs.train()
    assert len(curve(ours)) == 16
    assert curve(ours) == pytest.approx(curve(theirs), abs=5e-6)
    assert curve(ours)[-1] < curve(ours)[0]
    for metric in ("rewards/margins", "logps/chosen"):
        assert curve(ours, metric) == pytest.approx(curve(theirs, metric), abs=1e-3)


@each_loss
def test_the_preferred_completions_pull_ahead(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    rows = [pair_row(number) for number in range(24)]
    trainer = trained(rows, recipe_of(name, tiny_policy, epochs=4.0), tmp_path)
    margins, shares = curve(trainer, "rewards/margins"), curve(trainer, "rewards/accuracies")
    assert margins[0] == pytest.approx(0.0, abs=1e-4)
    assert margins[-1] > 0.5
    assert sum(shares[-6:]) / 6 > 0.95


@each_loss
def test_an_interrupted_run_goes_on_bit_exactly(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    config = recipe_of(name, tiny_policy, epochs=2.0, save_every=5)
    config = dataclasses.replace(config, dpo=dataclasses.replace(config.dpo, sft_weight=0.1))
    run_dir = RunDir(tmp_path)
    rows = [pair_row(number, margin=number % 3, p=0.9) for number in range(24)]
    assert_resumes_bit_exactly(config, run_dir, fresh=lambda: trainer_of(rows, config, tmp_path))


@each_loss
def test_ties_alone_leave_the_policy_where_it_is(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    rows = [pair_row(number, p=0.5) for number in range(8)]
    trainer = trained(rows, recipe_of(name, tiny_policy), tmp_path)
    assert curve(trainer, "grad_norm") == pytest.approx([0.0, 0.0], abs=1e-4)


@each_loss
def test_a_weight_and_a_margin_enter_the_loss(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    def first(folder: str, **columns: Any) -> float:
        rows = [pair_row(number, **columns) for number in range(4)]
        return curve(trained(rows, recipe_of(name, tiny_policy, max_steps=1), tmp_path / folder))[0]

    plain = first("plain")
    assert first("weight", weight=0.25) == pytest.approx(plain / 4, rel=1e-4)
    assert first("margin", margin=2.0) > 1.05 * plain


def test_ipo_spreads_the_margin_of_a_completion_over_its_tokens(tiny_policy: Path, tmp_path: Path) -> None:
    texts = {"chosen": "abcd", "rejected": "ab"}  # with EOS 5 and 3 tokens, 4 on average
    row = pair_row(
        1, margin=2.0, **{name: [{"role": "assistant", "content": text}] for name, text in texts.items()}
    )
    config = recipe_of("ipo", tiny_policy, max_steps=1)
    loss = curve(trained([row] * 4, config, tmp_path))[0]
    assert loss == pytest.approx(((0.5 + 2.0 / 4) / config.dpo.beta) ** 2, abs=1e-4)


def one(function: Any, difference: float, *, margin: float = 0.0, p: float = 1.0, **more: float) -> float:
    losses = function(torch.tensor([difference]), margin=torch.tensor([margin]), p=torch.tensor([p]), **more)
    return float(losses[0])


def test_hinge_is_satisfied_one_beyond_the_margin() -> None:
    assert one(hinge_loss, 0.25) == pytest.approx(0.75)
    assert one(hinge_loss, 1.0) == 0.0
    assert one(hinge_loss, 2.5, margin=2.0) == pytest.approx(0.5)
    assert one(hinge_loss, 3.0, margin=2.0) == 0.0
    assert one(hinge_loss, 0.25, p=0.0) == pytest.approx(1.25)  # the other one was preferred
    assert one(hinge_loss, 2.0, p=0.5) == pytest.approx(1.5)  # (0 + 3) / 2
    assert one(hinge_loss, 0.9, p=0.5) == one(hinge_loss, -0.9, p=0.5) == one(hinge_loss, 0.0, p=0.5)


def test_ipo_is_cheapest_at_half_over_beta() -> None:
    beta = 0.1  # h of 5 nats a token is what sure people ask for, a difference of rewards of 0.5
    assert one(ipo_loss, 0.5, beta=beta) == 0.0
    assert one(ipo_loss, 0.0, beta=beta) == pytest.approx(25.0)
    assert one(ipo_loss, 0.0, p=0.5, beta=beta) == 0.0  # a tie
    assert one(ipo_loss, -0.5, p=0.0, beta=beta) == 0.0
    assert one(ipo_loss, 0.3, p=0.8, beta=beta) == pytest.approx(0.0, abs=1e-9)
    assert one(ipo_loss, 0.7, margin=0.2, beta=beta) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("p", [1.0, 0.8, 0.5])
def test_labels_that_are_wrong_as_often_as_robust_takes_them_to_be_cost_what_the_true_ones_would(
    p: float,
) -> None:
    flipped, difference = 0.2, 1.3
    noisy = (1 - flipped) * one(robust_loss, difference, p=p, flipped=flipped) + flipped * one(
        robust_loss, difference, p=1 - p, flipped=flipped
    )
    assert noisy == pytest.approx(one(comparison_loss, difference, p=p), rel=1e-5)


def test_robust_takes_off_what_a_wrong_label_would_have_added() -> None:
    loss = one(robust_loss, math.log(3), flipped=0.25)  # sigmoid(log 3) is 3/4
    assert loss == pytest.approx((0.75 * math.log(4 / 3) - 0.25 * math.log(4)) / 0.5)
    assert one(robust_loss, 2.0, margin=1.0, flipped=0.1) == pytest.approx(one(robust_loss, 1.0, flipped=0.1))
    assert one(robust_loss, 0.7, flipped=0.0) == one(comparison_loss, 0.7)


def test_only_the_robust_loss_takes_label_smoothing() -> None:
    with pytest.raises(ConfigError, match="only the robust loss reads it"):
        Dpo(label_smoothing=0.1)
