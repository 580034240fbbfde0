"""SFT: equal to TRL where all rows weigh alike, and it learns to write what it was shown, and to stop."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl.trainer.sft_config import SFTConfig  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

from tests.training_rlhf.conftest import pair_row, ranking_row, write_rows  # noqa: E402
from tests.training_rlhf.learning import (  # noqa: E402
    Rows,
    answered,
    assert_resumes_bit_exactly,
    curve,
    greeting,
    learn,
    make_config,
    trainer_for,
    trl_settings,
)
from training.rlhf import loading, rendering, sampling, sft, tuning  # noqa: E402
from training.rlhf.config import RunConfig, Sampling  # noqa: E402
from training.rlhf.rows.single_rows import Demonstration  # noqa: E402
from training.rlhf.run_dir import RunDir  # noqa: E402


def with_rows(folder: Path, train: Rows, test: Rows | None = None) -> RunDir:
    run_dir = RunDir(folder)
    write_rows(run_dir.data / "demonstrations.train.jsonl", train)
    write_rows(run_dir.data / "demonstrations.test.jsonl", test or [])
    return run_dir


def trl_trainer(rows: Rows, config: RunConfig, folder: Path) -> Any:
    """A bare TRL script over the same rows."""
    columns = ("prompt", "completion")
    return SFTTrainer(
        model=loading.load_policy(config.model),
        args=SFTConfig(**trl_settings(config, folder)),
        train_dataset=Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
        processing_class=loading.load_tokenizer(config.model),
        peft_config=tuning.peft_config(config, task="CAUSAL_LM"),
    )


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_losses_equal_trl_to_five_decimals_where_all_rows_weigh_alike(
    accumulated: int, lora: bool, tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [greeting(number) for number in range(42)]  # the last step has fewer batches, the last batch rows
    config = make_config("sft", tiny_policy, lora=lora, gradient_accumulation=accumulated, epochs=2.0)
    ours, theirs = learn(config, with_rows(tmp_path, rows)), trl_trainer(rows, config, tmp_path)
    theirs.train()
    assert len(curve(ours)) == (22 if accumulated == 1 else 6)
    for name in ("loss", "mean_token_accuracy", "entropy", "num_tokens"):
        assert curve(ours, name) == pytest.approx(curve(theirs, name), abs=5e-6)
    assert curve(ours)[-1] < curve(ours)[0]


def test_accumulating_four_small_batches_gives_the_loss_of_one_large_batch(
    tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [greeting(number, weight=1 + number % 3) for number in range(21)]  # 8, 8, 2 + 2 + 1
    large = learn(make_config("sft", tiny_policy, batch_size=8), with_rows(tmp_path / "large", rows))
    small = make_config("sft", tiny_policy, batch_size=2, gradient_accumulation=4)
    spread = learn(small, with_rows(tmp_path / "small", rows))
    assert len(curve(large)) == 3
    assert curve(spread) == pytest.approx(curve(large), abs=1e-5)


def test_only_the_completion_is_learnt_and_eos_is_the_last_of_it(tiny_policy: Path, tmp_path: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    trainer = trainer_for(make_config("sft", tiny_policy), with_rows(tmp_path, [greeting(1), greeting(2)]))
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = labels[labels != -100]
        assert str(tokenizer.decode(learnt)).startswith("Hello")
        assert learnt[-1] == tokenizer.eos_token_id
        before = ids[: int((labels != -100).nonzero()[0])]
        assert tokenizer.decode(before[-1:]) == "<|assistant|>"
    assert batch["elements"] == int((batch["labels"] != -100).sum())


def test_a_row_of_half_the_weight_pulls_half_as_hard(tiny_policy: Path, tmp_path: Path) -> None:
    def first(folder: str, **columns: Any) -> tuple[float, float]:
        rows = [greeting(number, **columns) for number in range(4)]
        trainer = learn(make_config("sft", tiny_policy, max_steps=1), with_rows(tmp_path / folder, rows))
        return curve(trainer)[0], curve(trainer, "grad_norm")[0]

    whole, half = first("whole"), first("half", weight=0.5)
    assert half == pytest.approx((whole[0] / 2, whole[1] / 2), rel=1e-4)


def test_a_policy_writes_what_it_was_shown_and_stops(tiny_policy: Path, tmp_path: Path) -> None:
    shown = [answered(number, "Hello Ada!") for number in range(16)]
    unseen = [answered(number, "Hello Ada!") for number in range(100, 104)]
    run_dir = with_rows(tmp_path, shown, unseen)
    config = make_config("sft", tiny_policy, epochs=30.0, learning_rate=1e-2)
    trainer = trainer_for(config, run_dir)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.1 * before["eval_loss"]
    assert 1.0 <= after["eval_perplexity"] < 1.2 < 100 < before["eval_perplexity"]
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    (said,) = sampling.generate(
        trainer.model, tokenizer, [unseen[0]["prompt"]],
        sampling=Sampling(temperature=0.0, max_new_tokens=24), seed=1,
    )  # fmt: skip
    assert (said.text, said.finish) == ("Hello Ada!", "eos")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_an_interrupted_run_goes_on_bit_exactly(lora: bool, tiny_policy: Path, tmp_path: Path) -> None:
    run_dir = with_rows(tmp_path, [greeting(number) for number in range(30)])
    config = make_config(
        "sft",
        tiny_policy,
        lora=lora,
        lora_dropout=0.1,  # the random state matters
        epochs=2.0,
        save_every=5,
        group_by_length=True,
        gradient_accumulation=2,
    )
    assert_resumes_bit_exactly(config, run_dir)


def tables(folder: Path, **files: Rows) -> dict[str, list[Demonstration]]:
    run_dir = RunDir(folder)
    for table, rows in files.items():
        write_rows(run_dir.data / f"{table}.train.jsonl", rows)
    return sft.tables(run_dir, make_config("sft", Path("here")), "train")


def texts(rows: list[Demonstration]) -> list[tuple[str, float]]:
    return [(row.completion[0]["content"], round(row.weight, 4)) for row in rows]


def test_demonstrations_come_before_all_that_was_preferred(tmp_path: Path) -> None:
    found = tables(tmp_path, demonstrations=[greeting(1)], pairs=[pair_row(1)])
    assert {name: len(rows) for name, rows in found.items()} == {"demonstrations": 1}
    assert sft.tables(RunDir(tmp_path), make_config("sft", Path("here")), "test") == {"demonstrations": []}


def test_of_pairs_each_preferred_completion_is_shown_once_as_the_strongest_says(tmp_path: Path) -> None:
    def said(chosen: str, **columns: Any) -> dict[str, Any]:
        return pair_row(1, chosen=[{"role": "assistant", "content": chosen}], **columns)

    rows = [
        said("good", strength=1, weight=0.5),
        said("good", strength=3, weight=0.25),
        said("tied", p=0.5, strength=0),
        said("fair", p=0.8, strength=2),
    ]
    found = tables(tmp_path, pairs=rows)
    assert texts(found["pairs"]) == [("good", 0.25), ("fair", 1.0)]
    assert [row.table for row in found["pairs"]] == ["pairs", "pairs"]


def test_of_rankings_the_best_share_the_weight_and_what_raters_agree_on_adds_up(tmp_path: Path) -> None:
    found = tables(
        tmp_path,
        rankings=[
            ranking_row(1, [1, 2, 3], weight=0.5),  # two raters of one task
            ranking_row(1, [1, 1, 2], weight=0.5),
            ranking_row(2, [1, 1]),  # nothing is better
        ],
    )
    assert texts(found["rankings"]) == [("1 ", 0.75), ("2 2 ", 0.25)]


def test_a_pair_that_a_ranking_says_already_adds_nothing(tmp_path: Path) -> None:
    ranking = ranking_row(1, [1, 2, 3])
    first, second, third = ranking["completions"]
    pairs = [
        {"prompt": ranking["prompt"], "chosen": chosen, "rejected": rejected, "p": 1.0}
        for chosen, rejected in ((first, second), (first, third), (second, third))
    ]
    found = tables(tmp_path, rankings=[ranking], pairs=[*pairs, pair_row(5)])
    assert texts(found["rankings"]) == [("1 ", 1.0)]
    assert len(found["pairs"]) == 1


def test_what_is_learnt_ends_where_rendering_ends_a_turn(tiny_policy: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    row = Demonstration(line=1, prompt=greeting(1)["prompt"], completion=greeting(1)["completion"])
    (labelled,) = sft.labelled([row], tokenizer)
    assert labelled.ids == rendering.conversation_ids(tokenizer, [*row.prompt, *row.completion])
    assert labelled.ids[: labelled.start] == rendering.prompt_ids(tokenizer, row.prompt)
    assert torch.tensor(labelled.ids[labelled.start :]).numel() == labelled.learnt
