"""Several datasets as one: what a weight does, what stays held out, and a figure for each of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import MakeRun, pair_row, run_child, write_rows  # noqa: E402
from tests.training_rlhf.learning import (  # noqa: E402
    answered,
    assert_resumes_bit_exactly,
    curve,
    greeting,
    make_config,
)
from training.rlhf import fitting, learners, loading, mixture, preflight, tuning  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig  # noqa: E402
from training.rlhf.mixture_settings import MixedDataset  # noqa: E402
from training.rlhf.run_dir import EXIT_COMPLETE, ProgressWriter, RunDir  # noqa: E402

Rows = list[dict[str, Any]]
OTHERS = range(300, 312)  # prompts of a second dataset


def mixed(
    folder: Path, table: str, main: Rows, extra: Rows, *, held_out: Rows | None = None, other: str = ""
) -> RunDir:
    """A run folder with a second dataset, "extra", whose rows are of the table `other` or the same one."""
    run_dir = RunDir(folder)
    write_rows(run_dir.data / f"{table}.train.jsonl", main)
    write_rows(run_dir.data / f"{table}.test.jsonl", [])
    write_rows(run_dir.mixed_data("extra") / f"{other or table}.train.jsonl", extra)
    write_rows(run_dir.mixed_data("extra") / f"{other or table}.test.jsonl", held_out or [])
    return run_dir


def weighing(weight: float, source: str = "human") -> dict[str, Any]:
    return {"mixture": (MixedDataset(name="extra", weight=weight, source=source),)}


def trainer_of(config: RunConfig, run_dir: RunDir) -> Any:
    """The method's trainer over all datasets of the run."""
    tokenizer = loading.load_tokenizer(config.model)
    is_policy = config.method != "reward_model"
    load = loading.load_policy if is_policy else loading.load_reward_base
    seeded: dict[str, Any] = {} if is_policy else {"seed": config.seed}
    model = load(config.model, dtype=tuning.loaded_dtype(config), **seeded)
    loading.fit(model, tokenizer, where=config.model)
    train, test = (
        [row for rows in learners.tables(run_dir, config, split).values() for row in rows]
        for split in ("train", "test")
    )
    return learners.learner(config.method).make_trainer(
        model=model, tokenizer=tokenizer, train=train, test=test, config=config, run_dir=run_dir
    )


def first_step(config: RunConfig, run_dir: RunDir) -> tuple[float, float]:
    """Loss and size of the gradient."""
    trainer = trainer_of(config, run_dir)
    fitting.fit(trainer, run_dir=run_dir, progress=ProgressWriter(run_dir))
    return curve(trainer)[0], curve(trainer, "grad_norm")[0]


ROWS: dict[str, tuple[str, Any]] = {
    "dpo": ("pairs", pair_row),
    "reward_model": ("pairs", pair_row),
    "kto": (
        "unpaired",
        lambda number: answered(number, f"Hello {number}!", label=number % 2 == 0),
    ),
}


@pytest.mark.parametrize("method", ROWS)
def test_twice_the_weight_of_a_dataset_is_twice_its_share_of_the_gradient(
    method: str, tiny_policy: Path, tmp_path: Path
) -> None:
    table, row = ROWS[method]

    def losses(weight: float) -> tuple[float, float]:
        extra = [row(number) for number in range(300, 304)]
        run_dir = mixed(tmp_path / str(weight), table, [], extra)
        sections = weighing(weight)
        return first_step(make_config(method, tiny_policy, sections=sections, max_steps=1), run_dir)

    one, two = losses(1.0), losses(2.0)
    assert one[1] > 0
    assert two == pytest.approx((2 * one[0], 2 * one[1]), rel=1e-3)


@pytest.mark.parametrize("method", [*ROWS, "sft"])
def test_a_dataset_of_weight_0_changes_nothing(method: str, tiny_policy: Path, tmp_path: Path) -> None:
    table, row = ROWS.get(method, ("demonstrations", greeting))
    main, extra = [row(number) for number in range(8)], [row(number) for number in OTHERS]
    config = make_config(method, tiny_policy, epochs=2.0)

    def weights(folder: str, **sections: Any) -> dict[str, torch.Tensor]:
        run_dir = mixed(tmp_path / folder, table, main, extra, held_out=[row(900), row(901)])
        recipe = make_config(method, tiny_policy, epochs=2.0, sections=sections) if sections else config
        trainer = trainer_of(recipe, run_dir)
        fitting.fit(trainer, run_dir=run_dir, progress=ProgressWriter(run_dir))
        return dict(trainer.model.named_parameters())

    alone, beside, taught = weights("a"), weights("b", **weighing(0.0)), weights("c", **weighing(1.0))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert not all(torch.equal(alone[name], taught[name]) for name in alone)


def shown(run_dir: RunDir, weight: float, *, seed: int = 7) -> list[str]:
    config = RunConfig(method="sft", model="here", seed=seed, **weighing(weight))
    rows = learners.tables(run_dir, config, "train")["extra/demonstrations"]
    return [row.prompt[0]["content"] for row in rows]


def test_sft_takes_more_or_fewer_rows_of_a_dataset_the_same_ones_by_the_seed(tmp_path: Path) -> None:
    run_dir = mixed(tmp_path, "demonstrations", [greeting(1)], [greeting(number) for number in OTHERS])
    every = shown(run_dir, 1.0)
    half = shown(run_dir, 0.5)
    assert len(half) == 6
    assert set(half) < set(every)
    assert half == shown(run_dir, 0.5) != shown(run_dir, 0.5, seed=8)
    assert shown(run_dir, 2.0) == every * 2
    assert shown(run_dir, 2.25) == every * 2 + shown(run_dir, 0.25)


def test_each_dataset_is_read_as_if_it_were_alone(tmp_path: Path) -> None:
    pairs = [pair_row(number) for number in OTHERS]
    run_dir = mixed(tmp_path, "demonstrations", [greeting(1)], pairs, other="pairs")
    config = RunConfig(method="sft", model="here", **weighing(1.0))
    found = learners.tables(run_dir, config, "train")
    assert {table: len(rows) for table, rows in found.items() if rows} == {
        "demonstrations": 1,
        "extra/pairs": 12,
    }


def test_a_prompt_that_one_dataset_holds_out_is_trained_on_from_none(tmp_path: Path) -> None:
    leak = greeting(5)
    leak["prompt"] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " say HELLO,  5. "},
    ]
    main = [greeting(number) for number in range(8)]
    run_dir = mixed(tmp_path, "demonstrations", main, [leak, greeting(300)], held_out=[greeting(3)])
    write_rows(run_dir.data / "prompts.test.jsonl", [{"prompt": greeting(5)["prompt"]}])
    config = RunConfig(method="sft", model="here", **weighing(1.0))
    asked = [
        row.prompt[-1]["content"]
        for rows in learners.tables(run_dir, config, "train").values()
        for row in rows
    ]
    assert asked == [f"Say hello, {number}." for number in (0, 1, 2, 4, 6, 7, 300)]
    said = mixture.cautions(learners.tables_of_one, run_dir, config)
    assert [line.split(" are left out")[0] for line in said] == [
        "2 of 8 rows of the dataset main",
        "1 of 2 rows of the dataset extra",
    ]


def test_the_check_counts_the_rows_of_each_dataset(make_run: MakeRun) -> None:
    run_dir = make_run("dpo", pairs=10, mixture=[{"name": "ai", "weight": 0.5, "source": "ai"}])
    write_rows(run_dir.mixed_data("ai") / "pairs.train.jsonl", [pair_row(n) for n in OTHERS])
    found = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert found["ok"], found["errors"]
    assert {
        table: splits["train"]["kept"] for table, splits in found["rows"].items() if "train" in splits
    } == {
        "pairs": 10,
        "ai/pairs": 12,
    }


def test_a_dataset_that_is_not_there_is_refused_before_the_start(make_run: MakeRun) -> None:
    run_dir = make_run("dpo", mixture=[{"name": "gone"}])
    found = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert not found["ok"]
    assert "gone" in found["errors"][0]["what"]


@pytest.mark.parametrize(
    "mixture",
    [[{"name": "main"}], [{"name": "../x"}], [{"name": "a"}, {"name": "a"}], [{"name": "a", "weight": -1}],
     [{"name": "a", "weight": float("nan")}], [{"name": "a", "source": "nobody"}], {"a": 1}],
)  # fmt: skip
def test_a_mixture_that_makes_no_sense_is_no_recipe(mixture: Any) -> None:
    with pytest.raises(ConfigError, match="mixture"):
        RunConfig.from_json({"method": "dpo", "model": "here", "mixture": mixture})


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_run_on_a_mixture_goes_on_bit_exactly(method: str, tiny_policy: Path, tmp_path: Path) -> None:
    table, row = ROWS.get(method, ("demonstrations", greeting))
    main, extra = [row(number) for number in range(14)], [row(number) for number in OTHERS]
    run_dir = mixed(tmp_path, table, main, extra, held_out=[row(900), row(901)])
    config = make_config(
        method, tiny_policy, lora=True, lora_dropout=0.1, epochs=2.0, save_every=4, sections=weighing(1.5)
    )
    assert_resumes_bit_exactly(config, run_dir, fresh=lambda: trainer_of(config, run_dir))


def test_sft_on_demonstrations_and_pairs_reports_on_each_dataset_apart(make_run: MakeRun) -> None:
    """The real child process. Demonstrations say "Hello", pairs of the other dataset prefer "Bye"."""
    run_dir = make_run(
        "sft",
        pairs=0,
        mixture=[{"name": "farewells", "weight": 2.0, "source": "import"}],
        training={"epochs": 12.0, "learning_rate": 1e-2},
    )
    held_out = {"train": range(12), "test": range(900, 904)}
    for split, numbers in held_out.items():
        write_rows(run_dir.data / f"demonstrations.{split}.jsonl", [answered(n, "Hello!") for n in numbers])
        rows = [
            pair_row(n + 50, chosen=[{"role": "assistant", "content": "Bye bye."}])
            | {"prompt": [{"role": "user", "content": f"Take your leave, {n}."}]}
            for n in numbers
        ]
        write_rows(run_dir.mixed_data("farewells") / f"pairs.{split}.jsonl", rows)
    child = run_child(run_dir)
    assert child.returncode == EXIT_COMPLETE, child.stdout
    main, farewells = json.loads(run_dir.evaluation.read_text())["datasets"]
    assert (main["name"], main["weight"], main["train"], main["test"]) == ("main", 1.0, 12, 4)
    assert (farewells["name"], farewells["source"]) == ("farewells", "import")
    assert (farewells["weight"], farewells["train"], farewells["test"]) == (2.0, 24, 4)
    for one in (main, farewells):
        assert one["figures"]["loss"] < 0.5 * one["figures"]["loss_before"]
    lineage = json.loads((run_dir.model / "lineage.json").read_text())
    file = run_dir.mixed_data("farewells") / "pairs.train.jsonl"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert lineage["mixture"]["farewells"]["files"]["pairs.train.jsonl"] == digest


@pytest.mark.parametrize("method", ["dpo", "reward_model", "kto"])
def test_losses_and_accuracies_are_those_of_the_dataset_alone(make_run: MakeRun, method: str) -> None:
    """Of a dataset whose raters want the opposite, a model that learns the main one is wrong."""
    run_dir = make_run(
        method,
        pairs=16,
        training={"epochs": 10.0, "learning_rate": 3e-3},
        mixture=[{"name": "contrary", "weight": 0.0}],
    )
    extra = run_dir.mixed_data("contrary")
    unseen = [pair_row(number) for number in range(900, 912)]
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in unseen]
    write_rows(extra / "pairs.test.jsonl", turned)
    for folder, split in ((run_dir.data, "train"), (run_dir.data, "test"), (extra, "test")):
        rows = [json.loads(line) for line in (folder / f"pairs.{split}.jsonl").read_text().splitlines()]
        singles = [
            {"prompt": row["prompt"], "completion": row[side], "label": (side == "chosen")}
            for row in rows
            for side in ("chosen", "rejected")
        ]
        write_rows(folder / f"unpaired.{split}.jsonl", singles)
    child = run_child(run_dir)
    assert child.returncode == EXIT_COMPLETE, child.stdout
    main, contrary = json.loads(run_dir.evaluation.read_text())["datasets"]
    assert contrary["figures"]["loss"] > main["figures"]["loss"]
    if method != "kto":
        assert main["figures"]["accuracy"] > 0.6 > 0.5 > contrary["figures"]["accuracy"]
    assert contrary["train"] == 0
    assert contrary["test"] > 0


@pytest.mark.parametrize("method", ["rloo", "ppo"])
def test_an_online_run_writes_to_the_prompts_of_each_dataset_and_reports_on_each(
    method: str, make_run: MakeRun
) -> None:
    run_dir = make_run(
        method,
        pairs=0,
        rewards=[{"name": "short", "kind": "length", "options": {"max": 3}}],
        mixture=[{"name": "guests", "weight": 0.5}],
        training={"batch_size": 8, "max_steps": 2},
        **{method: {"rollout_size": 8} if method == "ppo" else {"completions_per_prompt": 4}},
    )
    for split, start in (("train", 0), ("test", 900)):
        asked = [{"prompt": greeting(start + n)["prompt"]} for n in range(6)]
        guests = [{"prompt": [{"role": "user", "content": f"Guest {start + n}?"}]} for n in range(6)]
        write_rows(run_dir.mixed_data("guests") / f"prompts.{split}.jsonl", guests)
        write_rows(run_dir.data / f"prompts.{split}.jsonl", asked + (guests if split == "test" else []))
    child = run_child(run_dir)
    assert child.returncode == EXIT_COMPLETE, child.stdout
    main, guests_alone = json.loads(run_dir.evaluation.read_text())["datasets"]
    assert (main["train"], guests_alone["train"]) == (6, 3)
    assert (main["figures"]["prompts"], guests_alone["figures"]["prompts"]) == (6, 6)
    assert guests_alone["figures"]["eos_rate"] >= 0
