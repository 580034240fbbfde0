"""Continued pretraining: texts in blocks as TRL packs them, and a policy that knows a field afterwards."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from datasets import Dataset  # noqa: E402
from trl.trainer.sft_config import SFTConfig  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

from tests.training_rlhf.conftest import write_rows  # noqa: E402
from tests.training_rlhf.learning import (  # noqa: E402
    Rows,
    assert_resumes_bit_exactly,
    curve,
    learn,
    make_config,
    trainer_for,
    trl_settings,
)
from training.rlhf import loading, pretraining  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.data import drop_too_long  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.measures import perplexity  # noqa: E402
from training.rlhf.rows.single_rows import TextRow, read_texts  # noqa: E402
from training.rlhf.run_dir import RunDir  # noqa: E402

_WORDS = ["tide", "moon", "shore", "wind", "keel", "rope"]


def text(number: int) -> dict[str, Any]:
    """A sentence or two of a field with few words."""
    words = [_WORDS[(number * step) % len(_WORDS)] for step in range(1, 3 + number % 5)]
    return {"text": f"The {' and the '.join(words)}."}


def with_rows(folder: Path, train: Rows, test: Rows | None = None) -> RunDir:
    run_dir = RunDir(folder)
    write_rows(run_dir.data / "texts.train.jsonl", train)
    write_rows(run_dir.data / "texts.test.jsonl", test or [])
    return run_dir


def trl_trainer(rows: Rows, config: RunConfig, folder: Path) -> Any:
    """A bare TRL script over the same texts, which fills each block with what comes next."""
    arguments = SFTConfig(
        **trl_settings(config, folder),
        max_length=config.training.max_length,
        packing=True,
        packing_strategy="wrapped",
    )
    return SFTTrainer(
        model=loading.load_policy(config.model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=loading.load_tokenizer(config.model),
    )


@pytest.mark.parametrize("accumulated", [1, 4])
def test_blocks_and_losses_equal_those_of_trl(accumulated: int, tiny_policy: Path, tmp_path: Path) -> None:
    rows = [text(number) for number in range(60)]
    config = make_config("pretraining", tiny_policy, max_length=64, gradient_accumulation=accumulated)
    ours, theirs = trainer_for(config, with_rows(tmp_path, rows)), trl_trainer(rows, config, tmp_path)
    assert list(ours.train_dataset["ids"]) == list(theirs.train_dataset["input_ids"])
    assert {len(ids) for ids in ours.train_dataset["ids"][:-1]} == {64}
    ours.train()
    theirs.train()
    assert len(curve(ours)) > 8 / accumulated
    assert curve(ours) == pytest.approx(curve(theirs), abs=5e-6)


def test_every_token_is_learnt_and_eos_parts_the_texts(tiny_policy: Path, tmp_path: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    rows = [TextRow(line=1, text="abc"), TextRow(line=2, text="de<|end|>"), TextRow(line=3, text="f")]
    first, second = pretraining.blocks(rows, tokenizer, length=5)
    assert tokenizer.decode(first.ids) == "abc<|end|>d"
    assert tokenizer.decode(second.ids) == "e<|end|>f<|end|>"
    assert (first.learnt, second.learnt) == (4, 3)
    (alone,) = pretraining.blocks(rows[:1], tokenizer, length=3)  # EOS would be alone, with nothing before it
    assert tokenizer.decode(alone.ids) == "abc"


def test_a_policy_foretells_texts_of_the_field_that_it_did_not_read(
    tiny_policy: Path, tmp_path: Path
) -> None:
    unseen = [text(number) for number in (3, 8, 13, 19, 22, 26)]
    read = [text(number) for number in range(90)]
    run_dir = with_rows(tmp_path, [one for one in read if one not in unseen], unseen)
    config = make_config("pretraining", tiny_policy, max_length=64, epochs=6.0, learning_rate=1e-2)
    trainer = trainer_for(config, run_dir)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_perplexity"] > 100 > 3 > after["eval_perplexity"]
    rows = pretraining.tables(run_dir, config, "test")["texts"]
    found = perplexity.perplexity(trainer.model, loading.load_tokenizer(config.model), rows)
    assert found is not None
    assert found["perplexity"] == pytest.approx(after["eval_perplexity"], rel=0.3)  # texts one by one


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_an_interrupted_run_goes_on_bit_exactly(lora: bool, tiny_policy: Path, tmp_path: Path) -> None:
    run_dir = with_rows(tmp_path, [text(number) for number in range(60)])
    config = make_config(
        "pretraining", tiny_policy, lora=lora, lora_dropout=0.1, max_length=64, epochs=2.0, save_every=5
    )
    assert_resumes_bit_exactly(config, run_dir)


def test_a_text_that_is_longer_than_a_block_is_cut_and_none_is_left_out(
    tiny_policy: Path, tmp_path: Path
) -> None:
    run_dir = with_rows(tmp_path, [{"text": "so long " * 60}, text(1)])
    config = make_config("pretraining", tiny_policy, max_length=100)
    rows = pretraining.tables(run_dir, config, "train")["texts"]
    assert drop_too_long(rows, limit=100, count_tokens=len).dropped == 0
    trainer = learn(config, run_dir)
    expected = sum(len(str(row.text).encode()) + 1 for row in rows)
    assert sum(len(ids) for ids in trainer.train_dataset["ids"]) == expected


@pytest.mark.parametrize("row", [{}, {"text": 3}, {"text": "  "}, {"text": None}])
def test_a_row_without_a_text_is_refused_with_its_line(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "texts.train.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(Refused, match=re.escape("text: a text with at least one letter.")) as refused:
        read_texts(path)
    assert refused.value.where == "texts.train.jsonl, line 2"
