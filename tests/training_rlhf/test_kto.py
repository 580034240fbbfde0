"""KTO: equal to TRL where all rows weigh alike, and what ratings make of a completion."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl.trainer.kto_config import KTOConfig  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer  # noqa: E402

from tests.training_rlhf.conftest import write_rows  # noqa: E402
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
from training.rlhf import kto, loading, tuning  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.losses.unpaired_loss import kl_estimate, kto_loss  # noqa: E402
from training.rlhf.method_settings import Kto  # noqa: E402
from training.rlhf.rows.single_rows import Unpaired  # noqa: E402
from training.rlhf.run_dir import RunDir  # noqa: E402


def judged(number: int, **columns: Any) -> dict[str, Any]:
    """People like an answer with a name."""
    if number % 2:
        return answered(number, "no" * (1 + number % 7), label=False, **columns)
    return greeting(number, label=True, **columns)


def with_rows(folder: Path, train: Rows, test: Rows | None = None, *, table: str = "unpaired") -> RunDir:
    run_dir = RunDir(folder)
    write_rows(run_dir.data / f"{table}.train.jsonl", train)
    write_rows(run_dir.data / f"{table}.test.jsonl", test or [])
    return run_dir


def trl_trainer(rows: Rows, config: RunConfig, folder: Path) -> Any:
    """A bare TRL script over the same rows, which it does not put in another order."""
    own = config.kto
    settings = trl_settings(config, folder) | {"train_sampling_strategy": "sequential"}
    columns = ("prompt", "completion", "label")
    return KTOTrainer(
        model=loading.load_policy(config.model),
        args=KTOConfig(
            **settings,
            beta=own.beta,
            desirable_weight=own.desirable_weight,
            undesirable_weight=own.undesirable_weight,
        ),
        train_dataset=Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
        processing_class=loading.load_tokenizer(config.model),
        peft_config=tuning.peft_config(config, task="CAUSAL_LM"),
    )


def in_our_order(rows: Rows, trainer: Any) -> Rows:
    """The rows as our trainer meets them, told by their tokens."""
    tokenizer = trainer.processing_class
    texts = [tokenizer.decode(one, skip_special_tokens=True) for one in trainer.train_dataset["prompt_ids"]]
    by_text = {row["prompt"][0]["content"]: row for row in rows}
    return [by_text[text] for text in texts]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_losses_equal_trl_to_five_decimals_where_all_rows_weigh_alike(
    accumulated: int, lora: bool, tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [judged(number) for number in range(32)]
    own = Kto(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    config = make_config(
        "kto", tiny_policy, lora=lora, sections={"kto": own}, gradient_accumulation=accumulated, epochs=2.0
    )
    ours = learn(config, with_rows(tmp_path, rows))
    theirs = trl_trainer(in_our_order(rows, ours), config, tmp_path)
    theirs.train()
    assert len(curve(ours)) == 16 // accumulated
    assert curve(ours) == pytest.approx(curve(theirs), abs=5e-6)
    first, second = curve(ours)[: 8 // accumulated], curve(ours)[8 // accumulated :]
    assert sum(second) < sum(first)  # each epoch meets the same batches
    for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "num_tokens"):
        assert curve(ours, name) == pytest.approx(curve(theirs, name), abs=1e-3), name


def test_good_and_bad_are_mixed_and_every_row_meets_the_completion_of_its_neighbour(
    tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [judged(number) for number in [*range(0, 18, 2), *range(1, 17, 2)]]  # 9 good ones, then 8 bad ones
    trainer = trainer_for(make_config("kto", tiny_policy), with_rows(tmp_path, rows))
    labels = list(trainer.train_dataset["label"])
    assert sum(labels) == 9
    assert all(0 < sum(labels[start : start + 8]) < 8 for start in (0, 8))
    own = list(trainer.train_dataset["completion_ids"])
    others = list(trainer.train_dataset["KL_completion_ids"])
    assert others[:4] == [own[3], own[0], own[1], own[2]]
    assert others[16] == own[15]  # alone in the last batch, and not its own neighbour


def test_a_row_of_half_the_weight_pulls_half_as_hard(tiny_policy: Path, tmp_path: Path) -> None:
    def first(folder: str, **columns: Any) -> tuple[float, float]:
        rows = [judged(number, **columns) for number in range(4)]
        trainer = learn(make_config("kto", tiny_policy, max_steps=1), with_rows(tmp_path / folder, rows))
        return curve(trainer)[0], curve(trainer, "grad_norm")[0]

    whole, half = first("whole"), first("half", weight=0.5)
    assert whole[0] == pytest.approx(0.5, abs=1e-5)  # the policy is its own reference
    assert half == pytest.approx((whole[0] / 2, whole[1] / 2), rel=1e-4)


def test_good_completions_grow_likelier_than_bad_ones_that_were_not_seen(
    tiny_policy: Path, tmp_path: Path
) -> None:
    run_dir = with_rows(
        tmp_path, [judged(number) for number in range(32)], [judged(number) for number in range(100, 110)]
    )
    trainer = trainer_for(make_config("kto", tiny_policy, epochs=4.0), run_dir)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert after["eval_rewards/margins"] > 1.0
    assert after["eval_loss"] < 0.8 * before["eval_loss"]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_an_interrupted_run_goes_on_bit_exactly(lora: bool, tiny_policy: Path, tmp_path: Path) -> None:
    run_dir = with_rows(tmp_path, [judged(number) for number in range(30)])
    config = make_config(
        "kto", tiny_policy, lora=lora, lora_dropout=0.1, epochs=2.0, save_every=5, group_by_length=lora
    )
    assert_resumes_bit_exactly(config, run_dir)


def test_one_kind_of_completion_alone_is_refused_before_the_start(tiny_policy: Path, tmp_path: Path) -> None:
    run_dir = with_rows(tmp_path, [judged(number) for number in range(0, 8, 2)])
    with pytest.raises(Refused, match="All 4 completions are good: nothing says what to do instead"):
        trainer_for(make_config("kto", tiny_policy), run_dir)


def test_a_batch_of_one_is_refused_before_the_start(tiny_policy: Path, tmp_path: Path) -> None:
    run_dir = with_rows(tmp_path, [judged(number) for number in range(4)])
    with pytest.raises(Refused, match="a batch has only one"):
        trainer_for(make_config("kto", tiny_policy, batch_size=1), run_dir)


def rated(text: str, rating: float, criterion: str = "", **columns: Any) -> dict[str, Any]:
    return answered(1, text, rating=rating, criterion=criterion, **columns)


def read(folder: Path, config: RunConfig | None = None) -> dict[str, list[tuple[str, bool]]]:
    found = kto.tables(RunDir(folder), config or make_config("kto", Path("here")), "train")
    return {name: [(row.completion[0]["content"], row.label) for row in rows] for name, rows in found.items()}


def test_ratings_call_a_completion_good_or_bad_and_leave_out_what_lies_between(tmp_path: Path) -> None:
    rows = [
        rated("fine", 4),
        rated("so so", 3),
        rated("bad", 2),
        rated("disputed", 5),
        rated("disputed", 4),
        rated("disputed", 2),  # 3.67 on average
    ]
    run_dir = with_rows(tmp_path, rows, table="ratings")
    assert read(tmp_path)["ratings"] == [("fine", True), ("bad", False)]
    config = make_config("kto", Path("here"))
    assert kto.cautions(run_dir, config) == [
        "2 completions were rated between 2 and 4 and are left out: they are neither good nor bad."
    ]
    milder = dataclasses.replace(config, kto=Kto(good_from=3.5, bad_to=1.0))
    assert read(tmp_path, milder)["ratings"] == [("fine", True), ("disputed", True)]


def test_a_rating_as_a_whole_counts_before_the_mean_of_the_criteria(tmp_path: Path) -> None:
    rows = [
        rated("kind", 5, "kindness"), rated("kind", 5, "kindness"), rated("kind", 3, "truth"),  # 5 and 3
        rated("true", 1, "kindness"), rated("true", 5, "truth"), rated("true", 1, "Overall"),
        rated("heavy", 5, weight=3.0), rated("heavy", 1, weight=1.0),
    ]  # fmt: skip
    with_rows(tmp_path, rows, table="ratings")
    assert read(tmp_path)["ratings"] == [("kind", True), ("true", False), ("heavy", True)]


def test_what_people_called_good_outright_is_not_asked_of_ratings_again(tmp_path: Path) -> None:
    with_rows(tmp_path, [answered(1, "one", label=True)])
    with_rows(tmp_path, [rated("one", 1), rated("other", 1)], table="ratings")
    assert read(tmp_path) == {"unpaired": [("one", True)], "ratings": [("other", False)]}


def test_rows_of_one_kind_that_outweigh_the_others_are_told_with_the_weight_that_helps(
    tmp_path: Path,
) -> None:
    run_dir = with_rows(tmp_path, [answered(n, f"{n}", label=n < 2) for n in range(8)])
    config = make_config("kto", Path("here"))
    (said,) = kto.cautions(run_dir, config)
    assert said == (
        "Good completions weigh 0.33 times what bad ones do; 1 to 1.33 is recommended. "
        "Multiply kto.desirable_weight by 3.00 to 4.00."
    )
    assert kto.cautions(run_dir, dataclasses.replace(config, kto=Kto(desirable_weight=3.0))) == []


def loss(log_ratio: float, *, good: bool, kl: float = 0.0, beta: float = 1.0) -> float:
    found = kto_loss(torch.tensor([log_ratio]), kl=torch.tensor(kl), is_good=torch.tensor([good]), beta=beta)
    return float(found[0])


def test_a_completion_costs_half_where_the_policy_moved_as_far_as_everywhere() -> None:
    assert loss(2.0, good=True, kl=2.0) == loss(2.0, good=False, kl=2.0) == 0.5
    gained = math.log(3)  # sigmoid(log 3) is 3/4
    assert loss(gained, good=True) == pytest.approx(0.25)
    assert loss(gained, good=False) == pytest.approx(0.75)
    assert loss(-gained, good=False) == pytest.approx(0.25)
    assert loss(gained + 5, good=True, kl=5.0) == pytest.approx(0.25)
    assert loss(gained / 0.1, good=True, beta=0.1) == pytest.approx(0.25)


def test_a_distance_is_never_below_zero() -> None:
    assert float(kl_estimate(torch.tensor([3.0, -1.0]))) == 1.0
    assert float(kl_estimate(torch.tensor([-3.0, 1.0]))) == 0.0


def test_rows_without_any_completion_are_no_errors_of_kto() -> None:
    config = make_config("kto", Path("here"))
    assert kto.errors([], config=config, where="data") == []
    row = Unpaired(line=1, prompt=[], completion=[], label=False)
    (error,) = kto.errors([row], config=config, where="data")
    assert "are bad" in error["what"]
